// SPDX-License-Identifier: MIT
#include "cli/word_wrap.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

namespace mlx_flash {
namespace {

// The lines a terminal shows: understands \n, CSI nD and CSI K, and refuses to
// be written past its last column. ASCII only.
std::vector<std::string> screen(const std::string& bytes, size_t columns) {
  std::vector<std::string> lines(1);
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string& line = lines.back();
    if (bytes[i] == '\n') {
      lines.emplace_back();
    } else if (bytes[i] == '\x1b') {
      char* end = nullptr;
      const auto n = std::strtoul(bytes.c_str() + i + 2, &end, 10);
      if (*end == 'D') line.resize(line.size() - n);  // K follows at once
      i = static_cast<size_t>(end - bytes.c_str());
    } else {
      line += bytes[i];
      EXPECT_LT(line.size(), columns);
    }
  }
  return lines;
}

// Fed in pieces of `step` bytes.
std::vector<std::string> wrapped(const std::string& text,
                                 int columns,
                                 size_t step) {
  WordWrap wrap(columns);
  std::string out;
  for (size_t i = 0; i < text.size(); i += step) {
    out += wrap.add(text.substr(i, step));
  }
  return screen(out, static_cast<size_t>(columns));
}

using Lines = std::vector<std::string>;

TEST(WordWrap, BreaksBetweenWordsHoweverTheTextArrives) {
  for (size_t step = 1; step < 30; ++step) {
    EXPECT_EQ(wrapped("the quick brown fox jumps", 11, step),
              (Lines{"the quick ", "brown fox ", "jumps"}));
  }
}

TEST(WordWrap, KeepsTheTextsOwnLines) {
  EXPECT_EQ(wrapped("a\n\nbc d", 80, 1), (Lines{"a", "", "bc d"}));
}

TEST(WordWrap, AWordLongerThanTheLineIsCut) {
  EXPECT_EQ(wrapped("abcdefghij", 5, 1), (Lines{"abcd", "efgh", "ij"}));
  EXPECT_EQ(wrapped("x abcdefgh", 5, 1), (Lines{"x ", "abcd", "efgh"}));
}

TEST(WordWrap, WideCharactersCountTwice) {
  WordWrap wrap(6);
  EXPECT_EQ(wrap.add("日本 "), "日本 ");
  EXPECT_EQ(wrap.add("日"), "\n日");
}

TEST(WordWrap, BytesThatAreNoCharacterPass) {
  WordWrap wrap(10);
  EXPECT_EQ(wrap.add("a\xff"), "a\xff");
}

}  // namespace
}  // namespace mlx_flash
