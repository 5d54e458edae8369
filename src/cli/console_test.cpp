// SPDX-License-Identifier: MIT
#include "cli/console.h"

#include <gtest/gtest.h>

namespace mlx_flash {
namespace {

TEST(Console, BytesAreDecimalWithOneDigit) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1 kB");
  EXPECT_EQ(format_bytes(64e6), "64 MB");
  EXPECT_EQ(format_bytes(98.42e6), "98.4 MB");
  EXPECT_EQ(format_bytes(999.96e6), "1 GB");
  EXPECT_EQ(format_bytes(5e15), "5000 TB");
}

TEST(Console, SecondsGrowIntoMinutesAndHours) {
  EXPECT_EQ(format_seconds(0.0351), "35 ms");
  EXPECT_EQ(format_seconds(0.84), "0.8 s");
  EXPECT_EQ(format_seconds(9.99), "10 s");
  EXPECT_EQ(format_seconds(59.7), "1:00");
  EXPECT_EQ(format_seconds(185), "3:05");
  EXPECT_EQ(format_seconds(3723), "1:02:03");
}

TEST(Console, TextFromOutsideStaysOnOneLineAndCannotSteerTheTerminal) {
  EXPECT_EQ(one_line("a\nb\tc"), "a b c");
  EXPECT_EQ(one_line("\x1b[2J"), "\\x1b[2J");
  EXPECT_EQ(one_line("Zürich"), "Zürich");
}

TEST(Console, AClosedPipeIsAFailureThatSaysNothing) {
  EXPECT_TRUE(is_pipe_closed(pipe_closed()));
  EXPECT_FALSE(is_pipe_closed(cancelled("stopped")));
  EXPECT_FALSE(is_pipe_closed(Status()));
  EXPECT_EQ(exit_code(pipe_closed()), 1);
}

}  // namespace
}  // namespace mlx_flash
