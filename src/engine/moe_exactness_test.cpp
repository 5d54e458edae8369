// SPDX-License-Identifier: MIT

// What experts compute does not depend on the order in which they arrive, the
// pieces they come in, what else is in the forward, the threads, or whether
// anybody looks ahead. Each test first shows that what it varies really
// varied; two experts that change places are seen.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "engine/core.h"
#include "engine/testing/tiny_gguf.h"
#include "engine/testing/tiny_model.h"
#include "residency/cached_experts.h"
#include "residency/testing/direct_expert_stream.h"

namespace mlx_flash {
namespace {

using testing::DirectExpertOptions;
using testing::make_direct_expert_stream;
using testing::TemporaryFolder;
using testing::tiny_gguf_model;
using testing::TinyModel;
using testing::write_tiny_gguf;
using testing::write_tiny_model;

constexpr size_t kPrompt = 45;
constexpr size_t kDecode = 20;
constexpr uint32_t kExperts = 11;

// The model of a test: MLX folders, or a GGUF file.
enum class Written { kF32, kBF16, kAffine, kMxfp4InTurns, kFp8, kGguf };

using Logits = std::vector<std::vector<float>>;  // by position

bool same_bits(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * 4) != 0) {
      return false;
    }
  }
  return true;
}

// What a stream was asked for.
struct Asked {
  size_t rounds = 0;
  size_t experts = 0;
  size_t rows = 0;
  size_t pieces = 0;
  std::vector<std::vector<uint32_t>> of_layer;  // of the last round of each
  size_t announced = 0;
  size_t announced_rightly = 0;  // and asked for in the next round
};

// Passes everything on and counts it.
class Counted : public ExpertStream {
 public:
  Counted(ExpertStream& stream, Asked& asked)
      : stream_(&stream), asked_(asked) {}
  Counted(std::unique_ptr<ExpertStream> stream, Asked& asked)
      : own_(std::move(stream)), stream_(own_.get()), asked_(asked) {}

  Status begin(uint32_t layer,
               std::span<const uint32_t> experts,
               std::span<const uint32_t> rows) override {
    ++asked_.rounds;
    asked_.experts += experts.size();
    for (const uint32_t n : rows) asked_.rows += n;
    for (const uint32_t e : experts) {
      asked_.announced_rightly += expected_.count({layer, e});
    }
    expected_.clear();
    return stream_->begin(layer, experts, rows);
  }
  Result<const Piece*> next() override {
    auto piece = stream_->next();
    if (piece.ok() && *piece != nullptr) ++asked_.pieces;
    return piece;
  }
  void release() override { stream_->release(); }
  void end() override { stream_->end(); }
  void look_ahead(uint32_t layer, std::span<const uint32_t> experts) override {
    asked_.announced += experts.size();
    for (const uint32_t e : experts) expected_.insert({layer, e});
    stream_->look_ahead(layer, experts);
  }

 private:
  std::unique_ptr<ExpertStream> own_;
  ExpertStream* stream_;
  Asked& asked_;
  std::set<std::pair<uint32_t, uint32_t>> expected_;
};

class MoeExactness : public ::testing::TestWithParam<Written> {
 protected:
  MoeExactness() {
    model_.num_experts = kExperts;
    config_.model = folder_.path();
    if (GetParam() == Written::kBF16)
      model_.format = dense_format(DType::kBF16);
    if (GetParam() == Written::kAffine) {
      model_.format = affine_format(4, 64, DType::kF32);
    }
    if (GetParam() == Written::kFp8) {  // of blocks that rows cut anywhere
      model_.format = block_format(WeightKind::kFp8);
      model_.kv_lora_rank = 96;
      model_.moe_intermediate_size = 136;
    }
    model_.experts_in_turns = GetParam() == Written::kMxfp4InTurns;
    if (GetParam() == Written::kGguf) {
      model_ = tiny_gguf_model(kExperts);
      config_.model += "/model.gguf";
      EXPECT_TRUE(write_tiny_gguf(model_, folder_.path()).ok());
    } else {
      EXPECT_TRUE(write_tiny_model(model_, folder_.path()).ok());
    }
    config_.ram_bytes = 1'000'000'000;
    config_.context = kPrompt + kDecode;
    config_.prefill_rows = kPrompt;
    config_.tile_bytes = 16 << 10;
    config_.threads = 1;
    config_.kernels = Kernels::kFast;
    config_.io = IoBackend::kThreads;
  }

  std::unique_ptr<Core> open(DirectExpertOptions options = {}) {
    asked_ = Asked();
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    hooks.wrap_experts = [this, options](ExpertStream&,
                                         std::span<const ExpertLayer> layers,
                                         std::span<const File> files) {
      return std::make_unique<Counted>(
          make_direct_expert_stream(layers, files, options), asked_);
    };
    auto core = Core::open(config_, hooks);
    EXPECT_TRUE(core.ok()) << core.status().message();
    return core.ok() ? std::move(core).value() : nullptr;
  }

  // With the cache of an ordinary run.
  std::unique_ptr<Core> open_cached() {
    asked_ = Asked();
    cache_ = nullptr;
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    hooks.wrap_experts = [this](ExpertStream& own,
                                std::span<const ExpertLayer>,
                                std::span<const File>) {
      cache_ = dynamic_cast<const CachedExperts*>(&own);
      return std::make_unique<Counted>(own, asked_);
    };
    auto core = Core::open(config_, hooks);
    EXPECT_TRUE(core.ok()) << core.status().message();
    return core.ok() ? std::move(core).value() : nullptr;
  }

  uint64_t ram_min() const {
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    const auto plan = Core::plan_only(config_, hooks);
    EXPECT_TRUE(plan.ok()) << plan.status().message();
    return plan.ok() ? plan->ram_min_bytes : 0;
  }

  // Feeds the prompt in chunks, then fixed tokens one by one.
  static Logits run(Core& core, size_t chunk = kPrompt, uint32_t salt = 0) {
    Logits logits;
    SessionState session(core);
    for (size_t at = 0; at < kPrompt + kDecode;) {
      const size_t n = at < kPrompt ? std::min(chunk, kPrompt - at) : 1;
      std::vector<BatchRow> batch;
      for (size_t i = at; i < at + n; ++i) {
        batch.push_back(
            {&session, static_cast<uint32_t>(i), token(i, salt), true});
      }
      const Status status =
          core.forward(batch, [&](size_t, std::span<const float> row) {
            logits.emplace_back(row.begin(), row.end());
          });
      EXPECT_TRUE(status.ok()) << status.message();
      if (!status.ok()) return logits;
      at += n;
    }
    return logits;
  }

  static uint32_t token(size_t i, uint32_t salt) {
    return static_cast<uint32_t>((i * 37 + i * i * 11 + 5 + salt * 101) % 307);
  }

  TemporaryFolder folder_;
  TinyModel model_;
  Config config_;
  Asked asked_;
  const CachedExperts* cache_ = nullptr;  // of the core that was opened last
};

INSTANTIATE_TEST_SUITE_P(Formats,
                         MoeExactness,
                         ::testing::Values(Written::kF32,
                                           Written::kBF16,
                                           Written::kAffine,
                                           Written::kMxfp4InTurns,
                                           Written::kFp8,
                                           Written::kGguf));

using MoeOfFp8 = MoeExactness;
INSTANTIATE_TEST_SUITE_P(Latent, MoeOfFp8, ::testing::Values(Written::kFp8));
using MoeOfGguf = MoeExactness;
INSTANTIATE_TEST_SUITE_P(Twin, MoeOfGguf, ::testing::Values(Written::kGguf));

TEST_P(MoeExactness, OrderAndPiecesChangeNoBit) {
  const auto whole = open();
  const Logits reference = run(*whole);
  const Asked plain = asked_;
  EXPECT_EQ(plain.pieces, plain.experts);
  EXPECT_EQ(plain.rounds, model_.num_hidden_layers * (1 + kDecode));
  EXPECT_EQ(plain.rows, model_.num_hidden_layers * 3 * (kPrompt + kDecode));

  EXPECT_TRUE(same_bits(reference, run(*open({.backwards = true}))));
  for (const uint32_t rows : {7u, 64u}) {
    for (const bool alternate : {false, true}) {
      const auto core = open({.rows_per_piece = rows, .alternate = alternate});
      EXPECT_TRUE(same_bits(reference, run(*core))) << rows;
      EXPECT_EQ(asked_.experts, plain.experts);
      EXPECT_GE(asked_.pieces, 5 * plain.pieces);
    }
  }
}

// From everything in memory to the least that works: a cache of one expert, and
// pieces of experts.
TEST_P(MoeExactness, CacheSizesChangeNoBit) {
  const Logits reference = run(*open());
  const auto everything = open_cached();
  ASSERT_NE(everything, nullptr);
  EXPECT_TRUE(same_bits(reference, run(*everything)));
  const CachedExperts::Stats roomy = cache_->stats();
  EXPECT_GT(roomy.hits, 0u);
  EXPECT_EQ(roomy.evictions, 0u);

  const uint64_t least = ram_min();
  const uint64_t weights = everything->summary().weights_bytes;
  for (const uint64_t share : {60u, 25u, 10u, 0u}) {
    for (const bool look_ahead : {true, false}) {
      config_.ram_bytes = least + weights * share / 100;
      config_.look_ahead = look_ahead ? LookAhead::kOn : LookAhead::kOff;
      const auto core = open_cached();
      ASSERT_NE(core, nullptr);
      EXPECT_TRUE(same_bits(reference, run(*core))) << share;
      const CachedExperts::Stats stats = cache_->stats();
      EXPECT_GT(stats.pieces, stats.hits) << share;
      EXPECT_GT(stats.evictions, 0u) << share;
      EXPECT_GT(stats.bytes_read, roomy.bytes_read) << share;
      EXPECT_TRUE(look_ahead || stats.ahead_bytes == 0);
    }
  }
}

TEST_P(MoeExactness, ChunksAndThreadsChangeNoBit) {
  const auto one = open();
  const Logits reference = run(*one);
  const size_t experts = asked_.experts;
  for (const size_t chunk : {1u, 7u, 32u}) {
    asked_ = Asked();
    EXPECT_TRUE(same_bits(reference, run(*one, chunk))) << chunk;
    // Each expert once for all rows of a chunk: more chunks, more of them.
    EXPECT_GT(asked_.experts, experts);
  }
  config_.threads = 2;
  const auto two = open();
  EXPECT_EQ(two->threads(), 2);
  EXPECT_TRUE(same_bits(reference, run(*two)));
}

TEST_P(MoeExactness, SessionsInOneBatchEqualEachAlone) {
  const auto core = open();
  const Logits alone[] = {run(*core, kPrompt, 0), run(*core, kPrompt, 1)};
  ASSERT_FALSE(same_bits(alone[0], alone[1]));
  SessionState sessions[] = {SessionState(*core), SessionState(*core)};
  Logits logits[2];
  for (size_t i = 0; i < kPrompt; ++i) {
    std::vector<BatchRow> batch;
    for (uint32_t s = 0; s < 2; ++s) {
      batch.push_back(
          {&sessions[s], static_cast<uint32_t>(i), token(i, s), true});
    }
    const Status status =
        core->forward(batch, [&](size_t row, std::span<const float> values) {
          logits[row].emplace_back(values.begin(), values.end());
        });
    ASSERT_TRUE(status.ok()) << status.message();
  }
  for (int s = 0; s < 2; ++s) {
    EXPECT_TRUE(same_bits(Logits(alone[s].begin(), alone[s].begin() + kPrompt),
                          logits[s]));
  }
}

TEST_P(MoeExactness, LookingAheadChangesNoBit) {
  config_.look_ahead = LookAhead::kOn;
  const auto core = open();
  const Logits reference = run(*core);
  // Of each token but the prompt, for all layers but the first.
  EXPECT_EQ(asked_.announced, (model_.num_hidden_layers - 1) * 3 * kDecode);
  EXPECT_GT(asked_.announced_rightly, asked_.announced / 4);
  config_.look_ahead = LookAhead::kOff;
  const auto off = open();
  EXPECT_TRUE(same_bits(reference, run(*off)));
  EXPECT_EQ(asked_.announced, 0u);
}

TEST_P(MoeExactness, AnotherNumberOfExpertsChangesTheAnswer) {
  const Logits reference = run(*open());
  const size_t rows = asked_.rows;
  config_.moe_top_k = 2;
  EXPECT_FALSE(same_bits(reference, run(*open())));
  EXPECT_EQ(asked_.rows, rows / 3 * 2);
  config_.moe_top_k = 3;
  EXPECT_TRUE(same_bits(reference, run(*open())));
  config_.moe_top_k = kExperts + 1;
  const auto refused = Core::plan_only(config_);
  EXPECT_EQ(exit_code(refused.status()), 2);
}

// What equality with itself cannot see: the reader takes another expert's
// bytes, always.
TEST_P(MoeOfGguf, IsItsTwinInFloat32) {
  const Logits reference = run(*open());
  config_.model = folder_.path() + "/twin";
  const Logits twin = run(*open());
  ASSERT_EQ(twin.size(), reference.size());
  float largest = 0;
  float error = 0;
  for (size_t i = 0; i < twin.size(); ++i) {
    for (size_t k = 0; k < twin[i].size(); ++k) {
      largest = std::max(largest, std::abs(twin[i][k]));
      error = std::max(error, std::abs(twin[i][k] - reference[i][k]));
    }
  }
  EXPECT_GT(largest, 0.0f);
  EXPECT_LT(error, 1e-3f * largest);
  EXPECT_GT(error, 0.0f) << "the twin was read from the same blocks";
}

// What the published models become, and MLX has no product for on the CPU.
TEST_P(MoeOfFp8, StockSaysThatItCannot) {
  config_.kernels = Kernels::kStock;
  const auto core = open();
  ASSERT_NE(core, nullptr);
  SessionState session(*core);
  const BatchRow row = {&session, 0, 5, true};
  const Status status =
      core->forward({&row, 1}, [](size_t, std::span<const float>) {});
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(std::string(status.message()).find("bfloat16"), std::string::npos);
  EXPECT_NE(std::string(status.message()).find("--kernels fast"),
            std::string::npos);
}

TEST_P(MoeExactness, TwoExpertsThatChangePlacesAreSeen) {
  const Logits reference = run(*open());
  size_t swapped = 0;
  const auto core = open({.replace = [&](uint32_t layer, uint32_t expert) {
    if (layer != 1 || (expert != 4 && expert != 5)) return expert;
    ++swapped;
    return 9 - expert;
  }});
  const Logits wrong = run(*core);
  EXPECT_GT(swapped, 0u);
  EXPECT_FALSE(same_bits(reference, wrong));
}

}  // namespace
}  // namespace mlx_flash
