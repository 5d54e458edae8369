// SPDX-License-Identifier: MIT

// Where the context is full: without more an answer ends; with kv_keep_tokens
// the first tokens and the newest are kept, at the positions they have in the
// cache, and what comes out is a function of the tokens alone.

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "engine/testing/session_fixture.h"

namespace mlx_flash {
namespace {

using testing::ends_with;
using testing::Ids;
using testing::Logits;
using testing::same_row;
using testing::SessionTest;
using testing::text;
using testing::TinyModel;

constexpr size_t kContext = 530;
constexpr size_t kTokens = 900;

class Unbounded : public SessionTest {
 protected:
  void write(uint32_t layers, uint32_t window = 0) {
    TinyModel model = testing::smallest_model();
    model.num_hidden_layers = layers;
    model.sliding_window = window;
    SessionTest::write(model);
  }

  Config config(int bits, uint64_t keep) {
    Config config = SessionTest::config(bits, kContext);
    config.kv_keep_tokens = keep;
    return config;
  }

  // Runs `ids` after what the session has.
  static Logits go_on(Session& session,
                      const Ids& ids,
                      std::vector<uint32_t> chunks = {}) {
    Ids all = session.tokens();
    all.insert(all.end(), ids.begin(), ids.end());
    return feed(session, all, std::move(chunks));
  }
};

// In a model of one layer, keys and values are functions of the token alone: a
// session that has forgotten equals one that never saw what was forgotten.
TEST_F(Unbounded, ItIsWhatTheKeptTokensAloneGive) {
  write(1);
  for (const int bits : {0, 8, 4}) {
    for (const uint64_t keep : {1u, 64u, 100u}) {
      const size_t first = (keep + 63) / 64 * 64;
      const auto engine = open(config(bits, keep));
      const auto session = engine->new_session();
      const Logits logits = go_on(*session, text(0, kTokens));
      ASSERT_EQ(logits.size(), kTokens);
      EXPECT_EQ(session->position(), kTokens);
      const auto plain = open(config(bits, 0));
      Ids kept;
      size_t checked = 0;
      for (size_t t = 0; t < kTokens; ++t) {
        if (kept.size() == kContext) {
          const auto at = kept.begin() + static_cast<long>(first);
          kept.erase(at, at + 64);
        }
        kept.push_back(text(t, t + 1)[0]);
        const bool at_edge = t + 1 == kContext || t == kContext ||
                             t == kContext + 63 || t == kContext + 64;
        if (!at_edge && t % 97 != 0 && t + 1 != kTokens) continue;
        const auto fresh = plain->new_session();
        const Logits expected = go_on(*fresh, kept);
        EXPECT_TRUE(same_row(expected.back(), logits[t])) << bits << " " << t;
        ++checked;
        // Not what it would be had nothing been forgotten, or something else.
        if (t < kContext || !(at_edge || t + 1 == kTokens)) continue;
        std::swap(kept[first + 1], kept[first + 2]);
        const auto other = plain->new_session();
        EXPECT_FALSE(same_row(go_on(*other, kept).back(), logits[t])) << t;
        std::swap(kept[first + 1], kept[first + 2]);
      }
      EXPECT_GE(checked, 12u);
    }
  }
}

TEST_F(Unbounded, ChunksThreadsAndGoingBackChangeNoBit) {
  write(3);
  for (const int bits : {0, 8, 4}) {
    Config config = this->config(bits, 64);
    const auto engine = open(config);
    const auto first = engine->new_session();
    const Logits expected = go_on(*first, text(0, kTokens));
    for (const uint32_t chunk : {1u, 50u, 64u}) {
      const auto session = engine->new_session();
      EXPECT_TRUE(
          ends_with(expected, go_on(*session, text(0, kTokens), {chunk})));
    }
    config.threads = 2;
    const auto threads = open(config);
    const auto session = threads->new_session();
    EXPECT_TRUE(ends_with(expected, go_on(*session, text(0, kTokens), {77})));
    std::mt19937 random(5);
    for (int i = 0; i < (bits == 8 ? 12 : 4); ++i) {
      // Over tokens that were forgotten meanwhile, too.
      const size_t end = kContext - 40 + random() % 300;
      const size_t back = 1 + random() % (i % 4 == 3 ? 200 : 64);
      const auto other = engine->new_session();
      go_on(*other, text(0, end - back));
      go_on(*other, text(end - back, end, 3));
      ASSERT_TRUE(other->truncate(end - back).ok());
      EXPECT_EQ(other->position(), end - back);
      const Logits again = go_on(*other, text(end - back, kTokens), {90});
      EXPECT_TRUE(ends_with(expected, again)) << bits << " " << end << back;
    }
  }
}

TEST_F(Unbounded, SlidingLayersAndTheBudgetHold) {
  write(2, 150);
  for (const int bits : {0, 8}) {
    Config config = this->config(bits, 64);
    const auto engine = open(config);
    const auto session = engine->new_session();
    const Logits expected = go_on(*session, text(0, kTokens));
    const auto other = engine->new_session();
    EXPECT_TRUE(
        ends_with(expected, go_on(*other, text(0, kTokens), {31, 200, 64})));
    const auto alone = open(config);
    const auto third = alone->new_session();
    for (size_t at = 0; at < 4000; at += 500) {
      go_on(*third, text(at, at + 500));
      EXPECT_LE(alone->counters().kv_ram_bytes, alone->plan().kv_bytes_max);
    }
  }
}

TEST_F(Unbounded, BeforeTheContextIsFullNothingIsDifferent) {
  write(3);
  for (const int bits : {0, 8}) {
    const auto plain = open(config(bits, 0));
    const auto one = plain->new_session();
    const Logits expected = go_on(*one, text(0, kContext));
    const auto engine = open(config(bits, 64));
    const auto other = engine->new_session();
    Logits logits = go_on(*other, text(0, kTokens));
    const Logits more(logits.begin() + kContext, logits.end());
    logits.resize(kContext);
    EXPECT_TRUE(ends_with(expected, logits));
    // What is kept at the beginning matters afterwards, all of it.
    const auto wider = open(config(bits, 128));
    const auto third = wider->new_session();
    const Logits others = go_on(*third, text(0, kTokens));
    for (size_t i = 0; i < more.size(); i += 60) {
      EXPECT_FALSE(same_row(more[i], others[kContext + i])) << i;
    }
  }
}

TEST_F(Unbounded, AnAnswerEndsAtTheContextUnlessItMayForget) {
  write(2);
  const GenerateOptions options = {.max_tokens = 100, .ignore_eos = true};
  const Ids prompt = text(0, kContext - 20);
  const auto plain = open(config(8, 0));
  const auto session = plain->new_session();
  Generation stops = session->generate(prompt, options);
  while (stops.next()) {
  }
  EXPECT_EQ(stops.finish_reason(), FinishReason::kLength);
  EXPECT_TRUE(stops.status().ok());
  // The last token needs no position: nothing follows it.
  EXPECT_EQ(stops.tokens().size(), 21u);
  EXPECT_EQ(session->position(), kContext);
  // It stays that way.
  Generation none = session->generate(text(0, 1), options);
  EXPECT_FALSE(none.next().has_value());
  EXPECT_EQ(none.finish_reason(), FinishReason::kError);
  EXPECT_NE(none.status().message().find("--ctx"), std::string::npos);

  const auto engine = open(config(8, 64));
  const auto on = engine->new_session();
  Generation goes = on->generate(prompt, options);
  while (goes.next()) {
  }
  EXPECT_EQ(goes.finish_reason(), FinishReason::kLength);
  ASSERT_EQ(goes.tokens().size(), 100u);
  EXPECT_TRUE(std::equal(
      stops.tokens().begin(), stops.tokens().end(), goes.tokens().begin()));
  EXPECT_EQ(on->position(), kContext - 20 + 99);
  // A prompt longer than the context, too.
  const auto longer = engine->new_session();
  Generation more = longer->generate(text(0, 2 * kContext), options);
  while (more.next()) {
  }
  EXPECT_EQ(more.tokens().size(), 100u) << more.status().message();
}

TEST_F(Unbounded, WhatItCannotBeCombinedWithIsRefused) {
  write(2, 300);
  const auto message = [](const Config& config) {
    const auto engine = Engine::open(config);
    return engine.ok() ? "" : engine.status().message();
  };
  EXPECT_NE(message(config(0, 64)).find("--ctx"), std::string::npos);
  write(2);
  Config config = this->config(0, 64);
  EXPECT_EQ(message(config), "");
  config.kv_ram_bytes = 1;
  EXPECT_NE(message(config).find("--kv-ram"), std::string::npos);
  config = this->config(0, 64);
  config.kv_reuse_bytes = 1;
  EXPECT_NE(message(config).find("--kv-reuse"), std::string::npos);
  config = this->config(0, 64);
  config.kernels = Kernels::kStock;
  EXPECT_NE(message(config).find("--kernels fast"), std::string::npos);
  config = this->config(0, 250);
  EXPECT_NE(message(config).find("--ctx"), std::string::npos);
}

// Saved after it has forgotten, restored and gone on with, forth and back.
TEST_F(Unbounded, ASessionThatForgotGoesOnAfterARestart) {
  for (const uint32_t window : {0u, 150u}) {
    write(2, window);
    for (const int bits : {0, 8}) {
      const auto engine = open(config(bits, 64));
      const auto first = engine->new_session();
      const Logits expected = go_on(*first, text(0, kTokens));
      const std::string file = path("talk");
      auto session = engine->new_session();
      go_on(*session, text(0, 400));
      // In one file: before it forgets, when it has, and again.
      for (const size_t end : {400u, 500u, 531u, 560u, 600u, 800u}) {
        SCOPED_TRACE(::testing::Message() << window << " " << bits << end);
        EXPECT_TRUE(end == 400 ||
                    ends_with(Logits(expected.begin(),
                                     expected.begin() + static_cast<long>(end)),
                              go_on(*session, text(session->position(), end))));
        ASSERT_TRUE(session->save(file).ok());
        const auto later = open(config(bits, 64));
        const auto other = later->new_session();
        const auto restored = other->restore(file);
        ASSERT_TRUE(restored.ok());
        EXPECT_EQ(restored->problem, "");
        EXPECT_EQ(other->position(), end);
        EXPECT_EQ(other->impl().state.known(), end);
        EXPECT_TRUE(ends_with(expected, go_on(*other, text(end, kTokens))));
      }
      ASSERT_TRUE(session->truncate(795).ok());
      ASSERT_TRUE(session->save(file).ok());
      const auto last = engine->new_session();
      ASSERT_EQ(last->restore(file)->problem, "");
      EXPECT_TRUE(ends_with(expected, go_on(*last, text(795, kTokens))));
      // With another context other tokens are forgotten: computed again.
      for (Config other : {config(bits, 64), config(bits, 128)}) {
        if (other.kv_keep_tokens == 64) other.context = kContext + 64;
        const auto different = open(other);
        const auto again = different->new_session();
        EXPECT_NE(again->restore(file)->problem, "");
        EXPECT_EQ(again->impl().state.length(), 0u);
        EXPECT_EQ(again->position(), 795u);
        const auto plain = different->new_session();
        EXPECT_TRUE(ends_with(go_on(*plain, text(0, 800)),
                              go_on(*again, text(795, 800))));
      }
    }
  }
}

}  // namespace
}  // namespace mlx_flash
