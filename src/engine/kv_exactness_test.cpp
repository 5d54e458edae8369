// SPDX-License-Identifier: MIT

// What a token sees of the tokens before it is a function of the two positions
// alone: prompts cut in any way, threads, budgets, going back and running again
// change no bit, also where old keys and values are kept in fewer bits.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/testing/session_fixture.h"
#include "io/testing/faulty_read_queue.h"

namespace mlx_flash {
namespace {

using testing::Logits;
using testing::same_bits;
using testing::SessionTest;
using testing::text;
using testing::TinyModel;

constexpr size_t kTokens = 420;

uint32_t token_at(size_t i, uint32_t salt = 0) {
  return static_cast<uint32_t>(text(i, i + 1, salt)[0]);
}

// Runs tokens [begin, end) in chunks; their logits.
Logits run(Core& core,
           SessionState& session,
           size_t begin,
           size_t end,
           size_t chunk,
           uint32_t salt = 0) {
  Logits logits;
  for (size_t at = begin; at < end; at += chunk) {
    std::vector<BatchRow> batch;
    for (size_t i = at; i < std::min(end, at + chunk); ++i) {
      batch.push_back(
          {&session, static_cast<uint32_t>(i), token_at(i, salt), true});
    }
    const Status status =
        core.forward(batch, [&](size_t, std::span<const float> row) {
          logits.emplace_back(row.begin(), row.end());
        });
    EXPECT_TRUE(status.ok()) << status.message();
    if (!status.ok()) break;
  }
  return logits;
}

class KvExactness : public SessionTest {
 protected:
  void SetUp() override {
    TinyModel model;
    model.sliding_window = 100;
    write(model);
  }

  Config config(int bits) {
    Config config = SessionTest::config(bits, kTokens + 100);
    config.prefill_rows = kTokens;
    return config;
  }

  static std::unique_ptr<Core> open(const Config& config) {
    return open_core(config);
  }

  // Two threads and the smallest budget, in which weights stream, give the bits
  // of `expected` too.
  static void expect_same_at_minimum(Config config, const Logits& expected) {
    config.threads = 2;
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    const auto plan = Core::plan_only(config, hooks);
    ASSERT_TRUE(plan.ok());
    config.ram_bytes = plan->ram_min_bytes;
    const auto tight = open(config);
    ASSERT_NE(tight, nullptr);
    SessionState session(*tight);
    EXPECT_TRUE(same_bits(expected, run(*tight, session, 0, kTokens, 300)));
    EXPECT_GT(tight->counters().tiles_streamed, 0u);
  }
};

TEST_F(KvExactness, QuantisedBlocksAreSeenAndOnlyByQueriesPastTheWindow) {
  const auto full = open(config(0));
  ASSERT_NE(full, nullptr);
  SessionState session(*full);
  const Logits exact = run(*full, session, 0, kTokens, kTokens);
  for (const int bits : {8, 4}) {
    const auto core = open(config(bits));
    ASSERT_NE(core, nullptr);
    SessionState other(*core);
    const Logits logits = run(*core, other, 0, kTokens, kTokens);
    ASSERT_EQ(logits.size(), exact.size());
    // The first block is old from position 191 on.
    for (size_t t = 0; t < kTokens; ++t) {
      const bool same =
          std::memcmp(logits[t].data(), exact[t].data(), exact[t].size() * 4) ==
          0;
      EXPECT_EQ(same, t < 191) << bits << " " << t;
    }
  }
}

TEST_F(KvExactness, ChunksThreadsAndBudgetsChangeNoBit) {
  for (const int bits : {0, 4, 8}) {
    const Config config = this->config(bits);
    const auto whole = open(config);
    ASSERT_NE(whole, nullptr);
    SessionState session(*whole);
    const Logits expected = run(*whole, session, 0, kTokens, kTokens);
    for (const size_t chunk : {1u, 50u, 64u, 193u}) {
      SessionState other(*whole);
      EXPECT_TRUE(same_bits(expected, run(*whole, other, 0, kTokens, chunk)))
          << bits << " " << chunk;
    }
    expect_same_at_minimum(config, expected);
  }
}

TEST_F(KvExactness, GoingBackAndOnAgainChangesNoBit) {
  for (const int bits : {0, 4, 8}) {
    const auto core = open(config(bits));
    ASSERT_NE(core, nullptr);
    SessionState session(*core);
    const Logits expected = run(*core, session, 0, kTokens, kTokens);
    for (const size_t back : {1u, 17u, 63u, 64u, 200u, 300u}) {
      SessionState other(*core);
      run(*core, other, 0, kTokens - back, 170);
      run(*core, other, kTokens - back, kTokens, 90, 3);
      const bool kept = other.truncate(kTokens - back);
      if (back <= kKvRollback) {
        EXPECT_TRUE(kept) << bits << " " << back;
      }
      EXPECT_EQ(other.length(), kept ? kTokens - back : 0);
      const size_t from = other.length();
      const Logits again = run(*core, other, from, kTokens, 77);
      EXPECT_TRUE(same_bits(
          Logits(expected.begin() + static_cast<long>(from), expected.end()),
          again))
          << bits << " " << back;
    }
  }
}

TEST_F(KvExactness, TwoSessionsInOneBatchEqualEachAlone) {
  const auto core = open(config(8));
  ASSERT_NE(core, nullptr);
  SessionState alone(*core);
  const Logits expected = run(*core, alone, 0, kTokens, kTokens);
  SessionState a(*core);
  SessionState b(*core);
  run(*core, a, 0, 250, 250);
  run(*core, b, 0, 400, 130);
  std::vector<BatchRow> batch;
  for (uint32_t i = 0; i < 20; ++i) {
    batch.push_back({&a, 250 + i, token_at(250 + i), true});
    batch.push_back({&b, 400 + i, token_at(400 + i), true});
  }
  size_t seen = 0;
  const Status status =
      core->forward(batch, [&](size_t i, std::span<const float> row) {
        const auto& want = expected[batch[i].position];
        EXPECT_EQ(std::memcmp(row.data(), want.data(), want.size() * 4), 0);
        ++seen;
      });
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(seen, 40u);
}

// Latent attention, published as V2 and V3: a latent is key and value at once.
TEST_F(KvExactness, OfLatentsOneCopyIsKeptAndNoBitChanges) {
  TinyModel model;
  model.kv_lora_rank = 96;
  model.q_lora_rank = 64;
  for (const bool v2 : {false, true}) {
    model.latent_v2 = v2;
    write(model);
    Logits full;
    for (const int bits : {0, 8, 4}) {
      const Config config = this->config(bits);
      const auto whole = open(config);
      ASSERT_NE(whole, nullptr);
      const KvLayout layout = whole->model().kv_layout(DType::kF16, bits);
      EXPECT_EQ(layout.full_bytes(), 64u * (96 + 16) * 2);
      EXPECT_EQ(layout.old_bytes(),
                bits == 0 ? layout.full_bytes()
                          : kernels::kv_quant_bytes(1, 96 + 16, bits));
      SessionState session(*whole);
      const Logits expected = run(*whole, session, 0, kTokens, kTokens);
      if (bits == 0) full = expected;
      // Old ones are seen quantised, from position 191 on.
      EXPECT_TRUE(testing::same_row(expected[190], full[190]));
      EXPECT_EQ(testing::same_row(expected[191], full[191]), bits == 0);
      for (const size_t chunk : {1u, 50u, 64u}) {
        SessionState other(*whole);
        EXPECT_TRUE(same_bits(expected, run(*whole, other, 0, kTokens, chunk)))
            << bits << " " << chunk;
        ASSERT_TRUE(other.truncate(kTokens - chunk));
        run(*whole, other, kTokens - chunk, kTokens, 30, 3);
        ASSERT_TRUE(other.truncate(kTokens - chunk));
        EXPECT_TRUE(same_bits(
            Logits(expected.end() - static_cast<long>(chunk), expected.end()),
            run(*whole, other, kTokens - chunk, kTokens, 7)));
      }
      expect_same_at_minimum(config, expected);
    }
  }
}

// Long enough that old blocks leave memory: the newest tokens' share is 640.
constexpr size_t kLong = 1100;

class KvOnDisk : public KvExactness {
 protected:
  void SetUp() override { write(long_model()); }

  static TinyModel long_model() {
    TinyModel model = testing::smallest_model();
    model.num_hidden_layers = 3;
    model.num_attention_heads = 4;
    model.num_key_value_heads = 2;
    model.max_position_embeddings = 32768;
    return model;
  }

  Config disk_config(int bits) {
    return SessionTest::disk_config(bits, kLong + 100);
  }

  size_t files() {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator(folder_.path() + "/kv")) {
      ++n;
    }
    return n;
  }
};

TEST_F(KvOnDisk, BlocksFromTheFileChangeNoBit) {
  for (const int bits : {0, 4, 8}) {
    Config config = disk_config(bits);
    config.kv_ram_bytes = 0;
    const auto memory = open(config);
    ASSERT_NE(memory, nullptr);
    SessionState session(*memory);
    const Logits expected = run(*memory, session, 0, kLong, 300);
    EXPECT_EQ(memory->counters().kv_bytes_written, 0u);

    config = disk_config(bits);
    for (const size_t chunk : {300u, 77u}) {
      const auto core = open(config);
      ASSERT_NE(core, nullptr);
      EXPECT_GT(core->plan().kv_disk_bytes_max, 0u);
      SessionState other(*core);
      Logits logits = run(*core, other, 0, kLong - 30, chunk);
      const Logits last = run(*core, other, kLong - 30, kLong, 1);
      logits.insert(logits.end(), last.begin(), last.end());
      EXPECT_TRUE(same_bits(expected, logits)) << bits << " " << chunk;
      const StreamCounters counters = core->counters();
      // Everything past the window is there, and was read for each token.
      EXPECT_EQ(counters.kv_disk_bytes % (3 * kv_old_blocks(kLong - 1)), 0u);
      EXPECT_GT(counters.kv_disk_bytes, 0u);
      EXPECT_GE(counters.kv_bytes_read, 30 * (counters.kv_disk_bytes * 9 / 10));
      EXPECT_LE(counters.kv_ram_bytes, core->plan().kv_bytes_max);
      EXPECT_EQ(files(), 0u);
      // Back, and on again.
      ASSERT_TRUE(other.truncate(kLong - 60));
      EXPECT_TRUE(same_bits(Logits(expected.end() - 60, expected.end()),
                            run(*core, other, kLong - 60, kLong, 9)));
      other.truncate(0);
      EXPECT_EQ(core->counters().kv_disk_bytes, 0u);
    }
  }
}

TEST_F(KvOnDisk, InFullPrecisionAnyPositionComesBackFromTheFile) {
  Config config = disk_config(0);
  config.kv_ram_bytes = 0;
  const auto memory = open(config);
  ASSERT_NE(memory, nullptr);
  SessionState session(*memory);
  const Logits expected = run(*memory, session, 0, kLong, 300);
  config = disk_config(0);
  for (const int threads : {1, 2}) {
    config.threads = threads;
    const auto core = open(config);
    ASSERT_NE(core, nullptr);
    SessionState other(*core);
    for (const size_t back : {65u, 192u, 500u, 1037u, 1099u}) {
      const size_t to = kLong - back;
      // Other tokens where it goes back over.
      ASSERT_TRUE(other.truncate(to));
      run(*core, other, other.length(), to, 170);
      run(*core, other, to, kLong, 210, 3);
      const uint64_t read = core->counters().kv_bytes_read;
      ASSERT_TRUE(other.truncate(to)) << back;
      EXPECT_EQ(other.length(), to);
      // Three blocks of three layers: what the window takes from the file.
      if (back >= 192 && to > 200) {
        EXPECT_GT(core->counters().kv_bytes_read, read) << back;
      }
      EXPECT_TRUE(
          same_bits(Logits(expected.begin() + static_cast<long>(to),
                           expected.begin() + static_cast<long>(to) + 9),
                    run(*core, other, to, to + 9, 1)))
          << back;
      EXPECT_TRUE(same_bits(
          Logits(expected.begin() + static_cast<long>(to) + 9, expected.end()),
          run(*core, other, to + 9, kLong, threads == 1 ? 64 : 301)))
          << back;
      ASSERT_TRUE(other.truncate(to - 1));
      EXPECT_LE(core->counters().kv_ram_bytes, core->plan().kv_bytes_max);
    }
  }
}

TEST_F(KvOnDisk, ABlockThatDoesNotComeBackIsComputedAgain) {
  Core::Hooks hooks;
  hooks.runtime_bytes = 1'000'000;
  FaultyReadQueue* faulty = nullptr;
  std::unique_ptr<ReadQueue> inner;
  hooks.wrap_queue = [&](std::unique_ptr<ReadQueue> queue) {
    inner = std::move(queue);
    auto wrapped = std::make_unique<FaultyReadQueue>(*inner);
    faulty = wrapped.get();
    return wrapped;
  };
  auto core = Core::open(disk_config(0), hooks);
  ASSERT_TRUE(core.ok()) << core.status().message();
  {
    SessionState session(**core);
    const Logits expected = run(**core, session, 0, 900, 300);
    faulty->fail_read(faulty->reads_submitted() + 3, 100);
    EXPECT_FALSE(session.truncate(500));
    EXPECT_EQ(session.length(), 0u);
    EXPECT_EQ((*core)->counters().kv_disk_bytes, 0u);
    faulty->clear();
    EXPECT_TRUE(same_bits(expected, run(**core, session, 0, 900, 128)));
  }
  core->reset();
}

TEST_F(KvOnDisk, SlidingLayersBesideOthersChangeNoBit) {
  TinyModel model = long_model();
  model.max_position_embeddings = 32768;
  model.sliding_window = 300;
  write(model);
  for (const int bits : {0, 4, 8}) {
    Config config = disk_config(bits);
    config.kv_ram_bytes = 0;
    const auto memory = open(config);
    ASSERT_NE(memory, nullptr);
    SessionState session(*memory);
    const Logits expected = run(*memory, session, 0, kLong, 300);
    config = disk_config(bits);
    for (const size_t chunk : {300u, 77u}) {
      config.threads = chunk == 77 ? 2 : 1;
      const auto core = open(config);
      ASSERT_NE(core, nullptr);
      SessionState other(*core);
      Logits logits = run(*core, other, 0, kLong - 30, chunk);
      const Logits last = run(*core, other, kLong - 30, kLong, 1);
      logits.insert(logits.end(), last.begin(), last.end());
      EXPECT_TRUE(same_bits(expected, logits)) << bits << " " << chunk;
      const StreamCounters counters = core->counters();
      const KvLayout layout = core->model().kv_layout(DType::kF16, bits);
      const size_t record = KvLayout::whole_pages(64 + layout.old_bytes());
      const auto slide = static_cast<size_t>(std::count(
          layout.windows.begin(), layout.windows.end(), uint32_t{300}));
      ASSERT_GT(slide, 0u);
      ASSERT_LT(slide, 3u);
      // What slides keeps its window, the others everything.
      const size_t others = (3 - slide) * kv_old_blocks(kLong - 1);
      ASSERT_EQ(counters.kv_disk_bytes % record, 0u);
      EXPECT_GT(counters.kv_disk_bytes / record, others);
      EXPECT_LE(counters.kv_disk_bytes / record, others + slide * 5);
      ASSERT_TRUE(other.truncate(kLong - 64));
      EXPECT_TRUE(same_bits(Logits(expected.end() - 64, expected.end()),
                            run(*core, other, kLong - 64, kLong, 9)));
    }
  }
}

TEST_F(KvOnDisk, AContextThatMemoryDoesNotHoldGoesToDisk) {
  Config config = disk_config(0);
  config.kv_ram_bytes = 0;
  config.context = 20000;
  config.prefill_rows = 64;
  Core::Hooks hooks;
  hooks.runtime_bytes = 1'000'000;
  const auto roomy = Core::plan_only(config, hooks);
  ASSERT_TRUE(roomy.ok());
  EXPECT_EQ(roomy->kv_disk_bytes_max, 0u);
  config.ram_bytes = 12'000'000;
  const auto plan = Core::plan_only(config, hooks);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->context, 20000u);
  EXPECT_GT(plan->kv_disk_bytes_max, 10'000'000u);
  EXPECT_LE(plan->predicted_peak_bytes, 12'000'000u);
}

TEST_F(KvOnDisk, AFullDiskEndsTheForwardAndKeepsWhatWasSaid) {
  Config config = disk_config(8);
  Core::Hooks hooks;
  hooks.runtime_bytes = 1'000'000;
  int left = 12;
  hooks.write_kv = [&](int fd, const void* p, size_t n, off_t at) -> ssize_t {
    if (left == 0) {
      errno = ENOSPC;
      return -1;
    }
    --left;
    return ::pwrite(fd, p, n, at);
  };
  auto core = Core::open(config, hooks);
  ASSERT_TRUE(core.ok()) << core.status().message();
  SessionState session(**core);
  run(**core, session, 0, 300, 100);
  std::vector<BatchRow> batch;
  for (uint32_t i = 300; i < 600; ++i) batch.push_back({&session, i, 1, true});
  const Status full = (*core)->forward(batch, {});
  EXPECT_EQ(full.code(), StatusCode::kExhausted);
  EXPECT_NE(full.message().find("disk is full"), std::string::npos)
      << full.message();
  EXPECT_EQ(session.length(), 300u);
  // With room again it goes on, with the bits of an undisturbed run.
  left = 1 << 20;
  const Logits logits = run(**core, session, 300, 800, 200);
  const auto other = open(disk_config(8));
  SessionState fresh(*other);
  const Logits expected = run(*other, fresh, 0, 800, 300);
  EXPECT_TRUE(
      same_bits(Logits(expected.begin() + 300, expected.end()), logits));
}

TEST_F(KvOnDisk, TheFileStaysBelowItsLimit) {
  Config config = disk_config(8);
  config.kv_disk_limit = 200'000;
  const auto core = open(config);
  ASSERT_NE(core, nullptr);
  SessionState session(*core);
  Status status;
  uint32_t at = 0;
  for (; status.ok() && at < kLong; at += 50) {
    std::vector<BatchRow> batch;
    for (uint32_t i = at; i < at + 50; ++i) batch.push_back({&session, i, 1});
    status = core->forward(batch, {});
    EXPECT_LE(core->counters().kv_disk_bytes, 200'000u);
  }
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_NE(status.message().find("--kv-disk-limit"), std::string::npos);
  EXPECT_EQ(session.length(), at - 50);
}

// Faults of the disk under the KV file: seen, reported, and the same session
// goes on when they are over.
TEST_F(KvOnDisk, ALostOrChangedBlockIsNeverUsed) {
  for (const char* fault : {"eio", "short", "flip", "swap"}) {
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    FaultyReadQueue* faulty = nullptr;
    std::unique_ptr<ReadQueue> inner;
    hooks.wrap_queue = [&](std::unique_ptr<ReadQueue> queue) {
      inner = std::move(queue);
      auto wrapped = std::make_unique<FaultyReadQueue>(*inner);
      faulty = wrapped.get();
      return wrapped;
    };
    Config config = disk_config(8);
    auto core = Core::open(config, hooks);
    ASSERT_TRUE(core.ok()) << core.status().message();
    {
      SessionState session(**core);
      const Logits before = run(**core, session, 0, 700, 300);
      const std::string what = fault;
      // All weights are in memory by now: the next reads are of the KV file.
      const uint64_t k = faulty->reads_submitted() + 2;
      if (what == "eio") faulty->fail_read(k, 100);
      if (what == "short") faulty->cut_read(k, 100);
      if (what == "flip") faulty->flip_in_read(k, 5000, std::byte{4});
      if (what == "swap") faulty->flip_in_read(k, 20, std::byte{1});
      const std::vector<BatchRow> batch = {{&session, 700, 1, true}};
      const Status status = (*core)->forward(batch, {});
      EXPECT_EQ(status.code(), StatusCode::kIoError) << fault;
      EXPECT_NE(status.message().find("offset"), std::string::npos)
          << status.message();
      EXPECT_EQ(session.length(), 700u);
      faulty->clear();
      const Logits after = run(**core, session, 700, 760, 60);
      EXPECT_EQ(after.size(), 60u);
    }
    core->reset();
  }
}

TEST_F(KvOnDisk, AFolderThatWillNotDoIsRefused) {
  Config config = disk_config(8);
  Core::Hooks hooks;
  hooks.runtime_bytes = 1'000'000;
  const std::string base = folder_.path();
  std::filesystem::create_directory(base + "/real");
  std::filesystem::create_directory_symlink(base + "/real", base + "/link");
  std::ofstream(base + "/file") << "x";
  std::filesystem::create_directory(base + "/open");
  std::filesystem::permissions(base + "/open", std::filesystem::perms::all);
  for (const char* name : {"/link", "/file", "/open", "/none/below"}) {
    config.kv_dir = base + name;
    const auto core = Core::open(config, hooks);
    ASSERT_FALSE(core.ok()) << name;
    EXPECT_EQ(core.status().code(), StatusCode::kInvalidInput);
    EXPECT_NE(core.status().message().find("--kv-dir"), std::string::npos);
  }
}

}  // namespace
}  // namespace mlx_flash
