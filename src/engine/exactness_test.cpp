// SPDX-License-Identifier: MIT

// The promise this engine stands for: what is computed does not depend on
// where the weights are, how they are cut, how many rows go together, or how
// many threads compute. Every test first proves, by counters, that what it
// varies really varied; planted faults prove that a wrong byte is seen.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <thread>

#include "engine/core.h"
#include "engine/testing/tiny_model.h"
#include "io/testing/faulty_read_queue.h"

namespace mlx_flash {
namespace {

using testing::TemporaryFolder;
using testing::TinyModel;
using testing::write_tiny_model;

constexpr size_t kPrompt = 70;
constexpr size_t kDecode = 32;
constexpr uint64_t kEverything = 1'000'000'000;

using Logits = std::vector<std::vector<float>>;  // by position

std::vector<uint32_t> prompt_of(uint32_t vocab, uint32_t salt = 0) {
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < kPrompt; ++i) {
    ids.push_back((i * 37 + i * i * 11 + 5 + salt * 101) % vocab);
  }
  return ids;
}

uint32_t best(const std::vector<float>& logits) {
  return static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) -
                               logits.begin());
}

bool same_bits(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size() ||
        std::memcmp(a[i].data(), b[i].data(), a[i].size() * 4) != 0) {
      return false;
    }
  }
  return true;
}

struct RunOutput {
  Logits logits;  // of the whole prompt and of kDecode decoded tokens
  StreamCounters counters;
  Status status;
  size_t forwards = 0;
};

// Feeds the prompt in chunks, then decodes greedily.
RunOutput run(Core& core, size_t chunk, uint32_t salt = 0) {
  RunOutput out;
  SessionState session(core);
  const auto vocab = static_cast<uint32_t>(core.vocab_size());
  std::vector<uint32_t> ids = prompt_of(vocab, salt);
  for (size_t at = 0; at < kPrompt + kDecode;) {
    const size_t n = at < kPrompt ? std::min(chunk, kPrompt - at) : 1;
    std::vector<BatchRow> batch;
    for (size_t i = at; i < at + n; ++i) {
      batch.push_back({&session, static_cast<uint32_t>(i), ids[i], true});
    }
    out.status = core.forward(batch, [&](size_t, std::span<const float> row) {
      out.logits.emplace_back(row.begin(), row.end());
    });
    if (!out.status.ok()) return out;
    ++out.forwards;
    at += n;
    if (at >= kPrompt) ids.push_back(best(out.logits.back()));
  }
  out.counters = core.counters();
  return out;
}

class Exactness : public ::testing::Test {
 protected:
  Config config(const TinyModel& model, const std::string& name) {
    const std::string folder = folder_.path() + "/" + name;
    EXPECT_TRUE(write_tiny_model(model, folder).ok());
    Config config;
    config.model = folder;
    config.ram_bytes = kEverything;
    config.context = kPrompt + kDecode;
    config.prefill_rows = kPrompt;
    config.tile_bytes = 16 << 10;
    config.threads = 1;
    config.kernels = Kernels::kFast;
    config.io = IoBackend::kThreads;
    return config;
  }

  static Core::Hooks hooks() {
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    return hooks;
  }

  static std::unique_ptr<Core> open(const Config& config) {
    auto core = Core::open(config, hooks());
    EXPECT_TRUE(core.ok()) << core.status().message();
    return core.ok() ? std::move(core).value() : nullptr;
  }

  static uint64_t ram_min(const Config& config) {
    const auto plan = Core::plan_only(config, hooks());
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? plan->ram_min_bytes : 0;
  }

  TemporaryFolder folder_;
};

std::vector<TinyModel> models() {
  TinyModel f32;
  TinyModel bf16;
  bf16.format = dense_format(DType::kBF16);
  bf16.tie_word_embeddings = true;
  TinyModel affine;
  affine.format = affine_format(4, 64, DType::kF32);
  affine.sliding_window = 24;
  TinyModel fp8;  // heads and tiles that begin inside of blocks of scales
  fp8.format = block_format(WeightKind::kFp8);
  fp8.kv_lora_rank = 144;
  fp8.q_lora_rank = 72;
  return {f32, bf16, affine, fp8};
}

TEST_F(Exactness, BudgetTilesAndThreadsChangeNoBit) {
  int index = 0;
  for (const TinyModel& model : models()) {
    SCOPED_TRACE(index);
    Config config = this->config(model, std::to_string(index++));
    const auto resident = open(config);
    ASSERT_NE(resident, nullptr);
    const RunOutput reference = run(*resident, kPrompt);
    ASSERT_TRUE(reference.status.ok()) << reference.status.message();
    EXPECT_EQ(reference.counters.tiles_streamed, 0u);
    EXPECT_GT(reference.counters.tiles_pinned, 0u);

    const uint64_t smallest = ram_min(config);
    const uint64_t half = smallest + resident->summary().pass_bytes / 2;
    std::map<uint64_t, uint64_t> streamed;
    for (const uint64_t ram : {half, smallest}) {
      for (const int threads : {1, 2}) {
        config.ram_bytes = ram;
        config.threads = threads;
        const auto core = open(config);
        ASSERT_NE(core, nullptr);
        const RunOutput out = run(*core, kPrompt);
        ASSERT_TRUE(out.status.ok()) << out.status.message();
        EXPECT_TRUE(same_bits(reference.logits, out.logits));
        EXPECT_GT(out.counters.tiles_streamed, 0u);
        EXPECT_GT(out.counters.ring_wraps, 0u);
        EXPECT_EQ(core->threads(), threads);
        streamed[ram] = out.counters.tiles_streamed;
      }
    }
    EXPECT_GT(streamed[smallest], streamed[half]);

    config.ram_bytes = kEverything;
    config.tile_bytes = 4 << 10;
    const auto fine = open(config);
    ASSERT_NE(fine, nullptr);
    const RunOutput out = run(*fine, kPrompt);
    EXPECT_TRUE(same_bits(reference.logits, out.logits));
    EXPECT_GT(out.counters.tiles_pinned, reference.counters.tiles_pinned);
  }
}

TEST_F(Exactness, PrefillChunksChangeNoBit) {
  int index = 0;
  for (const TinyModel& model : models()) {
    SCOPED_TRACE(index);
    const auto core = open(config(model, std::to_string(index++)));
    ASSERT_NE(core, nullptr);
    const RunOutput whole = run(*core, kPrompt);
    ASSERT_TRUE(whole.status.ok());
    EXPECT_EQ(whole.forwards, 1 + kDecode);
    for (const size_t chunk : {1u, 7u, 64u}) {
      const RunOutput out = run(*core, chunk);
      EXPECT_EQ(out.forwards, (kPrompt + chunk - 1) / chunk + kDecode);
      EXPECT_TRUE(same_bits(whole.logits, out.logits)) << chunk;
    }
  }
}

TEST_F(Exactness, SessionsInOneBatchEqualEachAlone) {
  const auto core = open(config(models()[2], "batch"));
  ASSERT_NE(core, nullptr);
  const RunOutput alone[] = {run(*core, kPrompt, 0), run(*core, kPrompt, 1)};
  ASSERT_FALSE(same_bits(alone[0].logits, alone[1].logits));

  SessionState sessions[] = {SessionState(*core), SessionState(*core)};
  const auto vocab = static_cast<uint32_t>(core->vocab_size());
  std::vector<uint32_t> ids[] = {prompt_of(vocab, 0), prompt_of(vocab, 1)};
  Logits logits[2];
  // Session 1 lags behind session 0, so that their rows differ in position.
  for (size_t tick = 0; tick < kPrompt + kDecode + 3; ++tick) {
    std::vector<BatchRow> batch;
    std::vector<size_t> owner;
    for (size_t s = 0; s < 2; ++s) {
      const size_t position = sessions[s].length();
      if (tick < s * 3 || position >= kPrompt + kDecode) continue;
      batch.push_back({&sessions[s],
                       static_cast<uint32_t>(position),
                       ids[s][position],
                       true});
      owner.push_back(s);
    }
    ASSERT_TRUE(core->forward(batch,
                              [&](size_t i, std::span<const float> row) {
                                const size_t s = owner[i];
                                logits[s].emplace_back(row.begin(), row.end());
                                if (logits[s].size() >= kPrompt) {
                                  ids[s].push_back(best(logits[s].back()));
                                }
                              })
                    .ok());
  }
  EXPECT_TRUE(same_bits(alone[0].logits, logits[0]));
  EXPECT_TRUE(same_bits(alone[1].logits, logits[1]));
}

TEST_F(Exactness, GoingBackAndOnAgainChangesNoBit) {
  const auto core = open(config(models()[2], "back"));
  ASSERT_NE(core, nullptr);
  const RunOutput reference = run(*core, kPrompt);
  SessionState session(*core);
  const auto ids = prompt_of(static_cast<uint32_t>(core->vocab_size()));
  const auto feed = [&](size_t begin, size_t end, bool other) {
    std::vector<BatchRow> batch;
    for (size_t i = begin; i < end; ++i) {
      batch.push_back({&session,
                       static_cast<uint32_t>(i),
                       other ? (ids[i] + 1) % 307 : ids[i],
                       true});
    }
    Logits logits;
    EXPECT_TRUE(core->forward(batch,
                              [&](size_t, std::span<const float> row) {
                                logits.emplace_back(row.begin(), row.end());
                              })
                    .ok());
    return logits;
  };
  feed(0, 30, false);
  feed(30, kPrompt, true);  // a continuation that is taken back
  ASSERT_TRUE(session.truncate(30));
  const Logits again = feed(30, kPrompt, false);
  EXPECT_TRUE(same_bits(
      Logits(reference.logits.begin() + 30, reference.logits.begin() + kPrompt),
      again));
}

TEST_F(Exactness, StockIsTheSameStreamedAndResident) {
  int index = 0;
  for (const TinyModel& model : models()) {
    SCOPED_TRACE(index);
    Config config = this->config(model, std::to_string(index++));
    config.kernels = Kernels::kStock;
    const auto resident = open(config);
    ASSERT_NE(resident, nullptr);
    const RunOutput reference = run(*resident, kPrompt);
    ASSERT_TRUE(reference.status.ok()) << reference.status.message();
    EXPECT_EQ(reference.counters.tiles_streamed, 0u);
    config.ram_bytes = ram_min(config);
    const auto streamed = open(config);
    ASSERT_NE(streamed, nullptr);
    const RunOutput out = run(*streamed, kPrompt);
    ASSERT_TRUE(out.status.ok()) << out.status.message();
    EXPECT_GT(out.counters.tiles_streamed, 0u);
    EXPECT_TRUE(same_bits(reference.logits, out.logits));
  }
}

// The queue of the core under test, to plant faults in.
struct Planted {
  FaultyReadQueue* queue = nullptr;

  Core::Hooks hooks() {
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    hooks.wrap_queue = [this](std::unique_ptr<ReadQueue> inner) {
      struct Owning : FaultyReadQueue {
        explicit Owning(std::unique_ptr<ReadQueue> q)
            : FaultyReadQueue(*q), inner(std::move(q)) {}
        std::unique_ptr<ReadQueue> inner;
      };
      auto owning = std::make_unique<Owning>(std::move(inner));
      queue = owning.get();
      if (plant) plant(*queue);
      return owning;
    };
    return hooks;
  }
  std::function<void(FaultyReadQueue&)> plant;
};

class Faults : public Exactness {
 protected:
  void SetUp() override {
    config_ = config(models()[0], "faults");
    config_.ram_bytes = ram_min(config_);
    file_ = config_.model + "/model.safetensors";
    const auto core = open(config_);
    ASSERT_NE(core, nullptr);
    reference_ = run(*core, kPrompt);
    ASSERT_TRUE(reference_.status.ok());
    ASSERT_GT(reference_.counters.tiles_streamed, 0u);
    auto checkpoint = Checkpoint::open(config_.model);
    ASSERT_TRUE(checkpoint.ok());
    const Tensor* up = checkpoint->find("model.layers.1.mlp.up_proj.weight");
    ASSERT_NE(up, nullptr);
    offset_ = up->range.offset;
  }

  RunOutput run_with(Planted& planted) {
    auto core = Core::open(config_, planted.hooks());
    EXPECT_TRUE(core.ok()) << core.status().message();
    RunOutput out = run(**core, kPrompt);
    faults_ = planted.queue->faults_done();
    return out;
  }

  Config config_;
  std::string file_;
  uint64_t offset_ = 0;  // of a streamed matrix
  uint64_t faults_ = 0;
  RunOutput reference_;
};

TEST_F(Faults, OneFlippedBitInOneTileIsSeen) {
  Planted planted;
  planted.plant = [&](FaultyReadQueue& queue) {
    queue.flip_byte(file_, offset_ + 2002, std::byte{0x40});
  };
  const RunOutput out = run_with(planted);
  ASSERT_TRUE(out.status.ok());
  EXPECT_GT(faults_, 0u);
  EXPECT_FALSE(same_bits(reference_.logits, out.logits));
}

TEST_F(Faults, TwoSwappedTilesAreSeen) {
  Planted planted;
  planted.plant = [&](FaultyReadQueue& queue) {
    queue.swap_bytes(file_, offset_, offset_ + 32768, 16384);
  };
  const RunOutput out = run_with(planted);
  ASSERT_TRUE(out.status.ok());
  EXPECT_GT(faults_, 0u);
  EXPECT_FALSE(same_bits(reference_.logits, out.logits));
}

TEST_F(Faults, WithoutAFaultTheWrappedQueueIsExact) {
  Planted planted;
  const RunOutput out = run_with(planted);
  EXPECT_EQ(faults_, 0u);
  EXPECT_TRUE(same_bits(reference_.logits, out.logits));
}

TEST_F(Faults, ADiskErrorIsReportedWithFileAndOffsetAndCanBeRetried) {
  Planted planted;
  auto core = Core::open(config_, planted.hooks());
  ASSERT_TRUE(core.ok());
  planted.queue->fail_bytes(file_, offset_, 100'000);
  RunOutput out = run(**core, kPrompt);
  ASSERT_EQ(out.status.code(), StatusCode::kIoError);
  EXPECT_NE(out.status.message().find(file_), std::string::npos)
      << out.status.message();
  EXPECT_NE(out.status.message().find("offset"), std::string::npos)
      << out.status.message();
  EXPECT_TRUE(out.logits.empty());
  // The disk is well again: the same core goes on, with the same bits.
  planted.queue->clear();
  out = run(**core, kPrompt);
  ASSERT_TRUE(out.status.ok()) << out.status.message();
  EXPECT_TRUE(same_bits(reference_.logits, out.logits));
}

TEST_F(Faults, AShortReadIsReportedNeverUsed) {
  Planted planted;
  planted.plant = [](FaultyReadQueue& queue) { queue.cut_read(20, 100'000); };
  const RunOutput out = run_with(planted);
  EXPECT_EQ(out.status.code(), StatusCode::kIoError) << out.status.message();
  EXPECT_NE(out.status.message().find("offset"), std::string::npos)
      << out.status.message();
}

// A prompt's activations are lent by pinned tiles, which come back after it.
TEST_F(Exactness, APromptBorrowsFromPinsAndGivesBack) {
  Config config = this->config(models()[0], "borrow");
  const auto reference = open(config);
  ASSERT_NE(reference, nullptr);
  const RunOutput expected = run(*reference, kPrompt);
  config.ram_bytes = ram_min(config) + reference->summary().pass_bytes / 3;
  const auto core = open(config);
  ASSERT_NE(core, nullptr);
  ASSERT_GT(core->plan().prefill_activation_bytes, 0u);
  SessionState session(*core);
  const auto streamed = [&](uint32_t rows, bool logits) {
    session.truncate(0);
    std::vector<BatchRow> batch;
    for (uint32_t i = 0; i < rows; ++i) {
      batch.push_back({&session, i, i + 1, logits});
    }
    const uint64_t before = core->counters().tiles_streamed;
    EXPECT_TRUE(core->forward(batch, {}).ok());
    return core->counters().tiles_streamed - before;
  };
  streamed(1, false);  // reads the pinned tiles
  const uint64_t one = streamed(1, false);
  const uint64_t prompt = streamed(kPrompt, false);
  EXPECT_GT(prompt, one);
  streamed(1, false);  // reads again what was lent
  EXPECT_LE(streamed(1, false), one);
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
  EXPECT_TRUE(same_bits(expected.logits, run(*core, 1).logits));
}

TEST_F(Exactness, APromptInOnePassTellsHowFarItIs) {
  Config config = this->config(models()[0], "progress");
  const auto core = open(config);
  ASSERT_NE(core, nullptr);
  SessionState session(*core);
  std::vector<BatchRow> batch;
  for (uint32_t i = 0; i < kPrompt; ++i) batch.push_back({&session, i, i + 1});
  std::vector<size_t> layers;
  const auto layer_done = [&](size_t done, size_t total) {
    layers.push_back(done);
    EXPECT_EQ(total, core->model().config().windows.size());
  };
  ASSERT_TRUE(core->forward(batch, {}, false, layer_done).ok());
  ASSERT_EQ(layers.size(), core->model().config().windows.size());
  for (size_t i = 0; i < layers.size(); ++i) EXPECT_EQ(layers[i], i + 1);
}

TEST_F(Exactness, AChangedBudgetChangesNoBit) {
  Config config = this->config(models()[0], "ram");
  const auto reference = open(config);
  ASSERT_NE(reference, nullptr);
  const RunOutput expected = run(*reference, kPrompt);
  const uint64_t smallest = ram_min(config);
  config.ram_bytes = smallest + reference->summary().pass_bytes / 2;
  const auto core = open(config);
  ASSERT_NE(core, nullptr);
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
  const uint64_t pinned = core->plan().pinned_bytes;
  ASSERT_TRUE(
      core->set_ram(smallest + reference->summary().pass_bytes * 3 / 4).ok());
  EXPECT_GT(core->plan().pinned_bytes, pinned);
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
  ASSERT_TRUE(
      core->set_ram(smallest + reference->summary().pass_bytes / 4).ok());
  EXPECT_LT(core->plan().pinned_bytes, pinned);
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
  EXPECT_FALSE(core->set_ram(1000).ok());
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
}

// The machine takes memory back and gives it again while tokens are computed.
TEST_F(Exactness, FollowingTheMachinesMemoryChangesNoBit) {
  Config config = this->config(models()[0], "live");
  const auto reference = open(config);
  ASSERT_NE(reference, nullptr);
  const RunOutput expected = run(*reference, kPrompt);
  const uint64_t smallest = ram_min(config);
  const uint64_t pass = reference->summary().pass_bytes;
  config.ram_bytes = smallest + pass / 2;
  Core::Hooks live = hooks();
  double now = 0;
  LiveBudget::Sample sample;
  live.memory_clock = [&] { return now += 0.5; };
  live.sample_memory = [&] { return sample; };
  auto opened = Core::open(config, live);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  Core& core = **opened;
  const uint64_t asked = core.plan().pinned_bytes;
  EXPECT_TRUE(same_bits(expected.logits, run(core, kPrompt).logits));
  EXPECT_EQ(core.plan().pinned_bytes, asked);

  sample.limit_bytes = smallest + pass / 8;
  EXPECT_TRUE(same_bits(expected.logits, run(core, 1).logits));
  EXPECT_EQ(core.plan().ram_bytes, *sample.limit_bytes);
  EXPECT_LT(core.plan().pinned_bytes, asked / 2);

  // A limit that nothing can work with is said and survived.
  sample.limit_bytes = smallest / 2;
  EXPECT_TRUE(same_bits(expected.logits, run(core, kPrompt).logits));
  EXPECT_EQ(core.plan().ram_bytes, smallest + pass / 8);

  // More than was asked for is not taken.
  sample.limit_bytes = smallest + 4 * pass;
  EXPECT_TRUE(same_bits(expected.logits, run(core, 1).logits));
  EXPECT_EQ(core.plan().pinned_bytes, asked);

  // In the middle of a run, up and down with every token.
  int call = 0;
  config.ram_bytes = smallest + 2 * pass;
  live.memory_clock = [&] { return now += 3; };
  live.sample_memory = [&] {
    sample.limit_bytes = smallest + (++call % 2 == 0 ? pass / 8 : 2 * pass);
    return sample;
  };
  auto swinging = Core::open(config, live);
  ASSERT_TRUE(swinging.ok()) << swinging.status().message();
  const RunOutput swung = run(**swinging, 7);
  EXPECT_TRUE(same_bits(expected.logits, swung.logits));
  EXPECT_GT(call, 30);
  EXPECT_GT(swung.counters.tiles_pinned, 0u);
  EXPECT_GT(swung.counters.tiles_streamed,
            2 * expected.counters.tiles_streamed);
}

TEST_F(Exactness, ABudgetAskedForFromAnotherThreadIsTakenAtTheNextForward) {
  Config config = this->config(models()[0], "request");
  const uint64_t smallest = ram_min(config);
  const auto core = open(config);
  ASSERT_NE(core, nullptr);
  const RunOutput expected = run(*core, kPrompt);
  std::thread([&] { core->request_ram(smallest); }).join();
  EXPECT_EQ(core->plan().ram_bytes, kEverything) << "not before";
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
  EXPECT_EQ(core->plan().ram_bytes, smallest);
  core->request_ram(1000);
  EXPECT_TRUE(same_bits(expected.logits, run(*core, kPrompt).logits));
  EXPECT_EQ(core->plan().ram_bytes, smallest) << "refused";
}

}  // namespace
}  // namespace mlx_flash
