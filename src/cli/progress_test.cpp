// SPDX-License-Identifier: MIT
#include "cli/progress.h"

#include <gtest/gtest.h>

namespace mlx_flash {
namespace {

TEST(Progress, SaysShareRateAndTimeLeft) {
  EXPECT_EQ(progress_text("scoring", "tokens", 50, 200, 10, 200),
            "scoring [#######.......................]  25% 50/200 tokens | "
            "5.0 tokens/s | 30 s left");
}

TEST(Progress, IsNotDoneBeforeItIsDone) {
  const std::string almost =
      progress_text("scoring", "tokens", 9999, 10000, 10, 200);
  EXPECT_EQ(almost.find("100%"), almost.npos);
  const std::string done =
      progress_text("scoring", "tokens", 10000, 10000, 10, 200);
  EXPECT_NE(done.find("100%"), done.npos);
  EXPECT_EQ(done.find("left"), done.npos);
}

TEST(Progress, FitsTheTerminal) {
  for (int columns = 1; columns < 120; ++columns) {
    EXPECT_LE(
        progress_text("reading the prompt", "tokens", 5, 20, 1, columns).size(),
        static_cast<size_t>(columns));
  }
}

TEST(Progress, NothingDoneHasNoRate) {
  const std::string text = progress_text("scoring", "tokens", 0, 20, 0, 100);
  EXPECT_EQ(text.find("/s"), text.npos);
  EXPECT_NE(text.find("0/20"), text.npos);
}

}  // namespace
}  // namespace mlx_flash
