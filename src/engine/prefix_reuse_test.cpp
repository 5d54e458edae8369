// SPDX-License-Identifier: MIT

// A request that begins as an earlier one did takes up its keys and values
// instead of computing them, in full precision at any token, quantised where a
// prompt or an answer ended, and no bit of what follows depends on it.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>

#include "engine/testing/session_fixture.h"
#include "io/testing/faulty_read_queue.h"

namespace mlx_flash {
namespace {

using testing::ends_with;
using testing::Ids;
using testing::Logits;
using testing::SessionTest;
using testing::smallest_model;
using testing::text;
using testing::TinyModel;

constexpr size_t kTokens = 900;

// kTokens tokens, from `other` on different ones.
Ids request(size_t other = kTokens, uint32_t salt = 1) {
  Ids ids = text(0, other);
  const Ids rest = text(other, kTokens, salt);
  ids.insert(ids.end(), rest.begin(), rest.end());
  return ids;
}

class PrefixReuse : public SessionTest {
 protected:
  void write(const TinyModel& model = smallest_model()) {
    SessionTest::write(model);
  }

  Config config(int bits, bool disk, uint64_t reuse_bytes = 40'000'000) {
    // Long enough that old blocks go to the file where they may.
    Config config = disk ? disk_config(bits, 4000)
                         : SessionTest::config(bits, kTokens + 100);
    config.kv_reuse_bytes = reuse_bytes;
    return config;
  }

  // As feed, but begins with what earlier requests have left; how much.
  static size_t begin(Session& session, const Ids& ids) {
    const auto fresh = std::span(ids).subspan(session.tokens().size());
    return session.impl().begin_with(fresh);
  }

  // Leaves a request in parts, as prompts and answers end.
  static void leave(Engine& engine,
                    const Ids& ids,
                    std::initializer_list<size_t> ends) {
    const auto session = engine.new_session();
    for (const size_t end : ends) {
      feed(*session, Ids(ids.begin(), ids.begin() + static_cast<long>(end)));
      session->impl().keep();
    }
  }

  // Of a request, without any of that.
  Logits computed(int bits, const Ids& ids) {
    const auto engine = open(config(bits, false, 0));
    const auto session = engine->new_session();
    EXPECT_EQ(begin(*session, ids), 0u);
    return feed(*session, ids);
  }
};

TEST_F(PrefixReuse, CutAnywhereItChangesNoBit) {
  write();
  const std::initializer_list<size_t> ends = {300, 371, 830, kTokens};
  for (const int bits : {0, 8, 4}) {
    std::mt19937_64 random(static_cast<uint64_t>(40 + bits));
    std::vector<size_t> cuts;
    for (int i = 0; i < 10; ++i) cuts.push_back(1 + random() % (kTokens - 2));
    cuts.insert(cuts.end(), {64, 300, 371, 320, 830});
    std::vector<Logits> expected;
    for (const size_t cut : cuts) {
      expected.push_back(computed(bits, request(cut)));
    }
    for (const bool disk : {false, true}) {
      const auto engine = open(config(bits, disk));
      leave(*engine, request(), ends);
      EXPECT_GT(engine->counters().kv_reuse_bytes, 0u);
      EXPECT_EQ(engine->counters().kv_bytes_written > 0, disk);
      EXPECT_EQ(engine->plan().kv_reuse_bytes, disk ? 0u : 40'000'000u);
      size_t reused = 0;
      for (size_t i = 0; i < cuts.size(); ++i) {
        const size_t cut = cuts[i];
        size_t most = cut;
        if (bits != 0) {
          most = 0;
          for (const size_t end : ends) {
            const size_t length = std::min(cut, end);
            if (end - length <= 64) most = std::max(most, length);
          }
        }
        SCOPED_TRACE(::testing::Message() << bits << disk << " at " << cut);
        const auto session = engine->new_session();
        const uint64_t passes = engine->counters().passes;
        EXPECT_EQ(begin(*session, request(cut)), most);
        EXPECT_EQ(session->position(), most);
        EXPECT_EQ(session->impl().state.length(), most);
        EXPECT_EQ(engine->counters().passes, passes);
        const Logits logits = feed(*session, request(cut));
        EXPECT_EQ(logits.size(), kTokens - most);
        EXPECT_TRUE(ends_with(expected[i], logits));
        // Only what is missing was computed.
        EXPECT_EQ(engine->counters().passes - passes,
                  (kTokens - most + 299) / 300);
        reused += most;
        EXPECT_EQ(engine->counters().kv_reused_tokens, reused);
      }
      EXPECT_GT(reused, 1000u);
    }
  }
}

// The comparison would see it if a beginning were taken for another's.
TEST_F(PrefixReuse, AnothersBeginningIsSeenInTheLogits) {
  write();
  const Logits expected = computed(8, request(0));
  for (const bool disk : {false, true}) {
    const auto engine = open(config(8, disk));
    leave(*engine, request(), {830});
    const auto session = engine->new_session();
    EXPECT_EQ(begin(*session, request(0)), 0u);
    ASSERT_EQ(begin(*session, request(850)), 830u);
    EXPECT_FALSE(ends_with(expected, feed(*session, request(0))));
  }
}

TEST_F(PrefixReuse, GoingBackAfterwardsIsAsEver) {
  write();
  for (const int bits : {0, 8, 4}) {
    const Ids ids = request();
    const Logits expected = computed(bits, ids);
    for (const bool disk : {false, true}) {
      const auto engine = open(config(bits, disk));
      leave(*engine, ids, {830});
      for (const size_t back : {1u, 63u, 64u, 300u}) {
        const auto session = engine->new_session();
        ASSERT_EQ(begin(*session, ids), 830u);
        feed(*session, request(830, 7));
        ASSERT_TRUE(session->truncate(830).ok());
        ASSERT_TRUE(session->truncate(830 - back).ok());
        if (back <= 64 && bits == 0) {
          EXPECT_EQ(session->impl().state.length(), 830 - back);
        }
        // Nothing of the other end is left.
        EXPECT_TRUE(ends_with(expected, feed(*session, ids)))
            << bits << disk << back;
      }
      const auto session = engine->new_session();
      ASSERT_EQ(begin(*session, ids), 830u);
      ASSERT_TRUE(session->truncate(830 - 64).ok());
      EXPECT_EQ(session->impl().state.length(), 830u - 64);
      EXPECT_TRUE(ends_with(expected, feed(*session, ids)));
    }
  }
}

TEST_F(PrefixReuse, SlidingLayersTakeTheirWindows) {
  TinyModel model = smallest_model();
  model.sliding_window = 100;
  write(model);
  for (const int bits : {0, 8}) {
    for (const bool disk : {false, true}) {
      const auto engine = open(config(bits, disk));
      leave(*engine, request(), {500, 830});
      size_t reused = 0;
      std::mt19937_64 random(3);
      for (int i = 0; i < 6; ++i) {
        const size_t cut =
            i % 3 == 0 ? 500 - random() % 64 : 1 + random() % (kTokens - 2);
        const auto session = engine->new_session();
        const size_t begun = begin(*session, request(cut));
        EXPECT_LE(begun, cut);
        if (i % 3 == 0) {
          EXPECT_EQ(begun, cut);
        }
        reused += begun;
        const Logits logits = feed(*session, request(cut));
        EXPECT_TRUE(ends_with(computed(bits, request(cut)), logits))
            << bits << disk << " " << cut << " " << begun;
      }
      EXPECT_GT(reused, 900u);
    }
  }
}

// Through the public calls alone: sessions of one engine, and one that forgets.
TEST_F(PrefixReuse, AnAnswerIsTheSameAndItsPromptIsNotComputed) {
  write();
  const GenerateOptions options = {.max_tokens = 20, .ignore_eos = true};
  const auto answer = [&](Session& session, const Ids& prompt, size_t reused) {
    Generation generation = session.generate(prompt, options);
    while (generation.next()) {
    }
    EXPECT_EQ(generation.finish_reason(), FinishReason::kLength)
        << generation.status().message();
    EXPECT_EQ(generation.stats().reused_tokens, reused);
    EXPECT_EQ(generation.stats().prompt_tokens, prompt.size());
    return generation.tokens();
  };
  const Ids whole = request();
  const Ids prompt(whole.begin(), whole.begin() + 600);
  Ids other(prompt.begin(), prompt.begin() + 450);
  other.insert(other.end(), whole.begin() + 10, whole.begin() + 90);
  for (const int bits : {0, 8}) {
    const auto plain = open(config(bits, false, 0));
    const Ids first = answer(*plain->new_session(), prompt, 0);
    const Ids second = answer(*plain->new_session(), other, 0);
    EXPECT_NE(first, second);
    for (const bool disk : {false, true}) {
      const auto engine = open(config(bits, disk));
      const auto session = engine->new_session();
      EXPECT_EQ(answer(*session, prompt, 0), first);
      EXPECT_EQ(answer(*engine->new_session(), prompt, 599), first);
      ASSERT_TRUE(session->truncate(0).ok());
      EXPECT_EQ(answer(*session, prompt, 599), first);
      // The conversation goes on in another session.
      Ids more = prompt;
      more.insert(more.end(), first.begin(), first.end());
      more.insert(more.end(), {7, 8, 9});
      const Ids third = answer(*engine->new_session(), more, 619);
      EXPECT_EQ(answer(*plain->new_session(), more, 0), third);
      EXPECT_EQ(answer(*engine->new_session(), other, bits == 0 ? 450 : 0),
                second);
    }
  }
}

TEST_F(PrefixReuse, TheBudgetHoldsAndTheLeastUsedGoesFirst) {
  write();
  for (const bool disk : {false, true}) {
    const auto roomy = open(config(0, disk));
    leave(*roomy, request(), {640});
    const uint64_t one = roomy->counters().kv_reuse_bytes;
    const Config config = this->config(0, disk, 3 * one + one / 2);
    const auto engine = open(config);
    for (const uint32_t salt : {1u, 2u, 3u}) {
      leave(*engine, request(0, salt), {640});
    }
    EXPECT_EQ(begin(*engine->new_session(), request(0, 1)), 640u);
    leave(*engine, request(0, 4), {640});
    EXPECT_LE(engine->counters().kv_reuse_bytes, config.kv_reuse_bytes);
    // The second has lost its end, and no other anything.
    const size_t left = begin(*engine->new_session(), request(0, 2));
    EXPECT_LT(left, 640u);
    EXPECT_EQ(left % 64, 0u);
    for (const uint32_t salt : {1u, 3u, 4u}) {
      EXPECT_EQ(begin(*engine->new_session(), request(0, salt)), 640u) << salt;
    }
  }
}

TEST_F(PrefixReuse, TheContextComesBeforeWhatIsKept) {
  write();
  Config config = this->config(0, false, 1'000'000);
  config.prefill_rows = 64;
  const auto plan = Engine::plan_only(config);
  ASSERT_TRUE(plan.ok());
  config.ram_bytes = plan->ram_min_bytes;
  const auto engine = open(config);
  std::vector<std::unique_ptr<Session>> sessions;
  const Ids ids = request();
  const Logits expected = computed(0, ids);
  leave(*engine, ids, {kTokens});
  EXPECT_GT(engine->counters().kv_reuse_bytes, 0u);
  // More sessions than the plan knows of.
  size_t full = 0;
  for (int i = 0; i < 40 && full == 0; ++i) {
    sessions.push_back(engine->new_session());
    Logits logits;
    const Status status = sessions.back()->forward(
        std::span(ids).subspan(sessions.back()->tokens().size()),
        {},
        [&](size_t, std::span<const float> row) {
          logits.emplace_back(row.begin(), row.end());
        });
    if (!status.ok()) {
      EXPECT_EQ(status.code(), StatusCode::kExhausted) << status.message();
      EXPECT_NE(status.message().find("no room"), std::string::npos)
          << status.message();
      ++full;
    } else {
      EXPECT_TRUE(ends_with(expected, logits));
    }
  }
  EXPECT_EQ(full, 1u);
  EXPECT_GE(sessions.size(), 2u);
  EXPECT_EQ(engine->counters().kv_reuse_bytes, 0u);
}

TEST_F(PrefixReuse, ALostBlockIsComputedAgain) {
  write();
  const Ids ids = request();
  for (const int bits : {0, 8}) {
    const Logits expected = computed(bits, ids);
    for (const char* fault : {"eio", "short", "flip"}) {
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
      auto core = Core::open(config(bits, true), hooks);
      ASSERT_TRUE(core.ok()) << core.status().message();
      const auto run = [&](SessionState& state) {
        Logits logits;
        std::vector<BatchRow> batch;
        for (size_t i = state.length(); i < kTokens; ++i) {
          batch.push_back({&state,
                           static_cast<uint32_t>(i),
                           static_cast<uint32_t>(ids[i]),
                           true});
        }
        const Status status =
            (*core)->forward(batch, [&](size_t, std::span<const float> row) {
              logits.emplace_back(row.begin(), row.end());
            });
        EXPECT_TRUE(status.ok()) << status.message();
        return logits;
      };
      {
        SessionState first(**core);
        run(first);
        (*core)->keep(first, ids);
      }
      {
        SessionState state(**core);
        const std::string what = fault;
        const uint64_t k = faulty->reads_submitted() + 3;
        if (what == "eio") faulty->fail_read(k, 100);
        if (what == "short") faulty->cut_read(k, 100);
        if (what == "flip") faulty->flip_in_read(k, 3000, std::byte{4});
        (*core)->begin_with(state, ids);
        EXPECT_EQ(state.length(), 0u) << fault;
        EXPECT_EQ((*core)->counters().kv_reused_tokens, 0u);
        faulty->clear();
        EXPECT_TRUE(ends_with(expected, run(state))) << fault;
        // Kept again, it serves.
        (*core)->keep(state, ids);
        SessionState last(**core);
        (*core)->begin_with(last, std::span(ids).first(kTokens - 1));
        EXPECT_EQ(last.length(), kTokens - 1);
        EXPECT_TRUE(ends_with(expected, run(last)));
      }
      core->reset();
    }
  }
}

TEST_F(PrefixReuse, AFullDiskKeepsLessAndStopsNothing) {
  write();
  Core::Hooks hooks;
  hooks.runtime_bytes = 1'000'000;
  int left = 40;
  hooks.write_kv = [&](int fd, const void* p, size_t n, off_t at) -> ssize_t {
    if (left == 0) {
      errno = ENOSPC;
      return -1;
    }
    --left;
    return ::pwrite(fd, p, n, at);
  };
  auto core = Core::open(config(8, true), hooks);
  ASSERT_TRUE(core.ok()) << core.status().message();
  const Ids ids = request();
  SessionState state(**core);
  std::vector<BatchRow> batch;
  for (uint32_t i = 0; i < 300; ++i) {
    batch.push_back({&state, i, static_cast<uint32_t>(ids[i]), false});
  }
  ASSERT_TRUE((*core)->forward(batch, {}).ok());
  left = 5;
  (*core)->keep(state, std::span(ids).first(300));
  EXPECT_EQ((*core)->counters().kv_reuse_bytes, 0u);
  EXPECT_EQ(state.length(), 300u);
  left = 1000;
  (*core)->keep(state, std::span(ids).first(300));
  SessionState other(**core);
  (*core)->begin_with(other, ids);
  EXPECT_EQ(other.length(), 300u);
}

}  // namespace
}  // namespace mlx_flash
