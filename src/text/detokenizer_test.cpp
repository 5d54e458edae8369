// SPDX-License-Identifier: MIT
#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>

#include "text/tokenizer.h"

namespace mlx_flash {
namespace {

std::unique_ptr<Tokenizer> load(const std::string& file) {
  auto t =
      Tokenizer::from_file(std::string(FLASH_TESTDATA) + "/tokenizers/" + file);
  EXPECT_TRUE(t.ok()) << t.status().message();
  return t.ok() ? std::move(t).value() : nullptr;
}

TEST(Detokenizer, HalfACharacterWaitsForItsRest) {
  const auto t = load("gpt2.json");
  const auto ids = t->encode("\xE4\xBD\xA0!", false).value();
  ASSERT_EQ(ids.size(), 4u);  // three bytes and '!'
  Detokenizer stream(*t, false);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.push(ids[1]), "");
  EXPECT_EQ(stream.push(ids[2]), "\xE4\xBD\xA0");
  EXPECT_EQ(stream.push(ids[3]), "!");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Detokenizer, ACharacterThatNeverEndsIsReplaced) {
  const auto t = load("gpt2.json");
  const auto ids = t->encode("\xE4\xBD\xA0", false).value();
  Detokenizer stream(*t, false);
  EXPECT_EQ(stream.push(ids[0]), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

// What a matcher lets through when the text comes in the given pieces.
std::string shown(StopMatcher& matcher,
                  const std::vector<std::string>& pieces) {
  std::string out;
  for (const std::string& piece : pieces) out += matcher.push(piece);
  return out + matcher.finish();
}

TEST(StopMatcher, NoPartOfAStopStringThatSpansPiecesIsShown) {
  StopMatcher matcher({"</end>"});
  EXPECT_EQ(matcher.push("text <"), "text ");
  EXPECT_EQ(matcher.push("/e"), "");
  EXPECT_EQ(matcher.push("nd> more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.stop(), "</end>");
  EXPECT_EQ(matcher.push("after"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, WhatOnlyLookedLikeAStopStringIsShown) {
  StopMatcher matcher({"</end>"});
  EXPECT_EQ(shown(matcher, {"a </e", "nx </end"}), "a </enx </end");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcher, OverlapsAndSeveralStringsAreFound) {
  StopMatcher overlap({"aab"});
  EXPECT_EQ(shown(overlap, {"xa", "a", "a", "b", "y"}), "xa");
  StopMatcher two({"long stop", "stop"});
  EXPECT_EQ(shown(two, {"a long", " sto", "p"}), "a ");
  EXPECT_EQ(two.stop(), "long stop");
  StopMatcher none({"", ""});
  EXPECT_EQ(shown(none, {"all", " of it"}), "all of it");
}

TEST(StopMatcher, PiecesDoNotChangeWhatIsShown) {
  const uint32_t seed = 3;
  std::mt19937 random(seed);
  for (int round = 0; round < 2000; ++round) {
    std::string text(random() % 30, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 3; ++i) {
      std::string stop(1 + random() % 4, 'a');
      for (char& c : stop) c = static_cast<char>('a' + random() % 2);
      stops.push_back(stop);
    }
    // By the character, so that the first stop string to be complete counts.
    StopMatcher slow(stops);
    std::string want;
    for (const char c : text) want += slow.push(std::string_view(&c, 1));
    want += slow.finish();
    StopMatcher fast(stops);
    std::string got;
    for (size_t at = 0; at < text.size();) {
      const size_t n = 1 + random() % 7;
      got += fast.push(std::string_view(text).substr(at, n));
      at += n;
    }
    got += fast.finish();
    ASSERT_EQ(got, want) << text << " seed " << seed << " round " << round;
    ASSERT_EQ(fast.stopped(), slow.stopped());
    ASSERT_EQ(fast.stop(), slow.stop());
  }
}

}  // namespace
}  // namespace mlx_flash
