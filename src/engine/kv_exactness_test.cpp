// SPDX-License-Identifier: MIT

// What a token sees of the tokens before it is a function of the two positions
// alone: prompts cut in any way, threads, budgets, going back and running again
// change no bit, also where old keys and values are kept in fewer bits.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "engine/core.h"
#include "engine/testing/tiny_model.h"

namespace mlx_flash {
namespace {

using testing::TemporaryFolder;
using testing::TinyModel;
using testing::write_tiny_model;

constexpr size_t kTokens = 420;
using Logits = std::vector<std::vector<float>>;

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

uint32_t token_at(size_t i, uint32_t vocab) {
  return static_cast<uint32_t>((i * 37 + i * i * 11 + 5) % vocab);
}

// Runs tokens [begin, end) in chunks; their logits.
Logits feed(Core& core,
            SessionState& session,
            size_t begin,
            size_t end,
            size_t chunk,
            uint32_t salt = 0) {
  Logits logits;
  const auto vocab = static_cast<uint32_t>(core.vocab_size());
  for (size_t at = begin; at < end; at += chunk) {
    std::vector<BatchRow> batch;
    for (size_t i = at; i < std::min(end, at + chunk); ++i) {
      batch.push_back({&session,
                       static_cast<uint32_t>(i),
                       (token_at(i, vocab) + salt) % vocab,
                       true});
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

class KvExactness : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModel model;
    model.sliding_window = 100;
    ASSERT_TRUE(write_tiny_model(model, folder_.path() + "/m").ok());
  }

  Config config(int bits) {
    Config config;
    config.model = folder_.path() + "/m";
    config.ram_bytes = 1'000'000'000;
    config.context = kTokens + 100;
    config.prefill_rows = kTokens;
    config.threads = 1;
    config.kernels = Kernels::kFast;
    config.io = IoBackend::kThreads;
    config.kv_quant = bits;
    return config;
  }

  static std::unique_ptr<Core> open(const Config& config) {
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    auto core = Core::open(config, hooks);
    EXPECT_TRUE(core.ok()) << core.status().message();
    return core.ok() ? std::move(core).value() : nullptr;
  }

  TemporaryFolder folder_;
};

TEST_F(KvExactness, QuantisedBlocksAreSeenAndOnlyByQueriesPastTheWindow) {
  const auto full = open(config(0));
  ASSERT_NE(full, nullptr);
  SessionState session(*full);
  const Logits exact = feed(*full, session, 0, kTokens, kTokens);
  for (const int bits : {8, 4}) {
    const auto core = open(config(bits));
    ASSERT_NE(core, nullptr);
    SessionState other(*core);
    const Logits logits = feed(*core, other, 0, kTokens, kTokens);
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
    Config config = this->config(bits);
    const auto whole = open(config);
    ASSERT_NE(whole, nullptr);
    SessionState session(*whole);
    const Logits expected = feed(*whole, session, 0, kTokens, kTokens);
    for (const size_t chunk : {1u, 50u, 64u, 193u}) {
      SessionState other(*whole);
      EXPECT_TRUE(same_bits(expected, feed(*whole, other, 0, kTokens, chunk)))
          << bits << " " << chunk;
    }
    config.threads = 2;
    Core::Hooks hooks;
    hooks.runtime_bytes = 1'000'000;
    const auto plan = Core::plan_only(config, hooks);
    ASSERT_TRUE(plan.ok());
    config.ram_bytes = plan->ram_min_bytes;
    const auto tight = open(config);
    ASSERT_NE(tight, nullptr);
    SessionState third(*tight);
    EXPECT_TRUE(same_bits(expected, feed(*tight, third, 0, kTokens, 300)));
    EXPECT_GT(tight->counters().tiles_streamed, 0u);
  }
}

TEST_F(KvExactness, GoingBackAndOnAgainChangesNoBit) {
  for (const int bits : {0, 4, 8}) {
    const auto core = open(config(bits));
    ASSERT_NE(core, nullptr);
    SessionState session(*core);
    const Logits expected = feed(*core, session, 0, kTokens, kTokens);
    for (const size_t back : {1u, 17u, 63u, 64u, 200u, 300u}) {
      SessionState other(*core);
      feed(*core, other, 0, kTokens - back, 170);
      feed(*core, other, kTokens - back, kTokens, 90, 3);
      const bool kept = other.truncate(kTokens - back);
      if (back <= kKvRollback) {
        EXPECT_TRUE(kept) << bits << " " << back;
      }
      EXPECT_EQ(other.length(), kept ? kTokens - back : 0);
      const size_t from = other.length();
      const Logits again = feed(*core, other, from, kTokens, 77);
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
  const Logits expected = feed(*core, alone, 0, kTokens, kTokens);
  SessionState a(*core);
  SessionState b(*core);
  feed(*core, a, 0, 250, 250);
  feed(*core, b, 0, 400, 130);
  std::vector<BatchRow> batch;
  const auto vocab = static_cast<uint32_t>(core->vocab_size());
  for (uint32_t i = 0; i < 20; ++i) {
    batch.push_back({&a, 250 + i, token_at(250 + i, vocab), true});
    batch.push_back({&b, 400 + i, token_at(400 + i, vocab), true});
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

}  // namespace
}  // namespace mlx_flash
