// SPDX-License-Identifier: MIT
#include "cli/pull_progress.h"

#include <gtest/gtest.h>

namespace mlx_flash {
namespace {

hub::DownloadProgress at(uint64_t done) {
  hub::DownloadProgress progress;
  progress.total_bytes = 2'000'000'000;
  progress.done_bytes = done;
  return progress;
}

TEST(PullProgressText, HasShareRateAndTimeLeft) {
  EXPECT_EQ(pull_progress_text("a/b", at(500'000'000), 10e6, 68),
            "a/b [#####...............]  25% 500 MB of 2 GB | 10 MB/s | 2:30 "
            "left");
}

TEST(PullProgressText, IsAHundredPercentOnlyAtTheEnd) {
  EXPECT_NE(pull_progress_text("a", at(1'999'999'999), 0, 80).find(" 99%"),
            std::string::npos);
  EXPECT_NE(pull_progress_text("a", at(2'000'000'000), 0, 80).find("100%"),
            std::string::npos);
}

TEST(PullProgressText, SaysWhatItWaitsFor) {
  auto progress = at(0);
  progress.waiting_for = "x";
  EXPECT_NE(pull_progress_text("a", progress, 1, 80).find("another process"),
            std::string::npos);
  progress.waiting_for.clear();
  progress.checking = true;
  EXPECT_NE(pull_progress_text("a", progress, 1, 80).find("checking"),
            std::string::npos);
}

TEST(PullProgressText, FitsNarrowTerminals) {
  for (int columns = 1; columns < 100; ++columns) {
    EXPECT_LE(pull_progress_text("org/name", at(1), 1, columns).size(),
              static_cast<size_t>(columns));
  }
}

}  // namespace
}  // namespace mlx_flash
