// SPDX-License-Identifier: MIT
#include "cli/conversation.h"

#include <gtest/gtest.h>

#include <vector>

namespace mlx_flash {
namespace {

TEST(Conversation, TheSystemMessageComesFirstAndSurvivesAReset) {
  Conversation conversation;
  conversation.add("user", "hi");
  conversation.set_system("be brief");
  EXPECT_EQ(conversation.json(),
            R"([{"role":"system","content":"be brief"},)"
            R"({"role":"user","content":"hi"}])");
  conversation.clear();
  EXPECT_TRUE(conversation.empty());
  EXPECT_EQ(conversation.json(), R"([{"role":"system","content":"be brief"}])");
  conversation.set_system("");
  EXPECT_EQ(conversation.json(), "[]");
}

TEST(Conversation, WhatWasSavedComesBackAndNothingElseIsTaken) {
  Conversation conversation;
  conversation.set_system("be \"brief\"");
  conversation.add("user", "hi\n");
  conversation.add("assistant", "ho");
  Conversation other;
  other.add("user", "else");
  ASSERT_TRUE(other.restore(conversation.saved()).ok());
  EXPECT_EQ(other.json(), conversation.json());
  EXPECT_EQ(other.size(), 2u);
  for (const char* bad : {"",
                          "[]",
                          "{}",
                          R"({"system":1,"messages":[]})",
                          R"({"system":"","messages":{}})",
                          R"({"system":"","messages":[1]})",
                          R"({"system":"","messages":[{"role":"user"}]})"}) {
    EXPECT_FALSE(other.restore(bad).ok()) << bad;
  }
  EXPECT_EQ(other.json(), conversation.json());
}

TEST(Conversation, AFailedTurnLeavesNoTrace) {
  Conversation conversation;
  conversation.add("user", "one");
  const std::string before = conversation.json();
  conversation.add("user", "two");
  conversation.drop_last();
  EXPECT_EQ(conversation.json(), before);
}

TEST(Conversation, AnAnswerCutInsideACharacterStaysValidJson) {
  Conversation conversation;
  conversation.add("assistant", "caf\xc3");
  EXPECT_EQ(conversation.json(),
            "[{\"role\":\"assistant\",\"content\":\"caf\xef\xbf\xbd\"}]");
}

TEST(CommonPrefix, EndsAtTheFirstDifferenceOrTheShorterEnd) {
  const std::vector<int32_t> a{1, 2, 3};
  EXPECT_EQ(common_prefix(a, std::vector<int32_t>{1, 2, 3, 4}), 3u);
  EXPECT_EQ(common_prefix(a, std::vector<int32_t>{1, 2}), 2u);
  EXPECT_EQ(common_prefix(a, std::vector<int32_t>{1, 9, 3}), 1u);
  EXPECT_EQ(common_prefix(a, std::vector<int32_t>{}), 0u);
}

// The message that `lines` make; "(open)" if it is not complete.
std::string message(const std::vector<const char*>& lines) {
  MessageInput input;
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool complete = input.add_line(lines[i]);
    EXPECT_EQ(complete, !input.open());
    if (complete) {
      EXPECT_EQ(i + 1, lines.size()) << "complete too early";
      return input.take();
    }
  }
  return "(open)";
}

TEST(MessageInput, OneLineIsAMessage) {
  EXPECT_EQ(message({"hello"}), "hello");
  EXPECT_EQ(message({""}), "");
}

TEST(MessageInput, ABackslashAtTheEndGoesOn) {
  EXPECT_EQ(message({"a\\", "b\\", "c"}), "a\nb\nc");
  EXPECT_EQ(message({"a\\"}), "(open)");
}

TEST(MessageInput, TripleQuotesHoldManyLines) {
  EXPECT_EQ(message({"\"\"\"", "a", "", "b\\", "\"\"\""}), "a\n\nb\\");
  EXPECT_EQ(message({"\"\"\"a", "b\"\"\""}), "a\nb");
  EXPECT_EQ(message({"\"\"\"a\"\"\""}), "a");
  EXPECT_EQ(message({"\"\"\"\"\"\""}), "");
  EXPECT_EQ(message({"\"\"\"", "a"}), "(open)");
}

TEST(MessageInput, StartsAnewAfterTake) {
  MessageInput input;
  EXPECT_FALSE(input.add_line("\"\"\"x"));
  input.take();
  EXPECT_TRUE(input.add_line("y"));
  EXPECT_EQ(input.take(), "y");
}

}  // namespace
}  // namespace mlx_flash
