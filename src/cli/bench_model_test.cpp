// SPDX-License-Identifier: MIT
#include "cli/bench_model.h"

#include <gtest/gtest.h>

#include <vector>

namespace mlx_flash {
namespace {

GenerationStats decoding(double seconds, double read_s, double compute_s) {
  GenerationStats stats;
  stats.decode_s = seconds;
  stats.decode_bytes_read = static_cast<uint64_t>(read_s * 1e6);
  stats.decode_compute_s = compute_s;
  stats.decode_io_wait_s = seconds - compute_s;
  return stats;
}

TEST(DiskUse, TellsWhatWasHidden) {
  const DiskUse perfect = disk_use(decoding(10, 10, 4), 1e6);
  EXPECT_DOUBLE_EQ(perfect.share, 1);
  EXPECT_DOUBLE_EQ(perfect.overlap, 1);
  EXPECT_DOUBLE_EQ(perfect.stall, 0.6);
  const DiskUse none = disk_use(decoding(14, 10, 4), 1e6);
  EXPECT_DOUBLE_EQ(none.share, 10.0 / 14);
  EXPECT_DOUBLE_EQ(none.overlap, 0);
  EXPECT_DOUBLE_EQ(disk_use(decoding(12, 10, 4), 1e6).overlap, 0.5);
  EXPECT_DOUBLE_EQ(disk_use(decoding(8, 4, 8), 1e6).overlap, 1);
}

TEST(DiskUse, SaysNothingWithoutFigures) {
  EXPECT_DOUBLE_EQ(disk_use(decoding(5, 0, 5), 1e6).overlap, 1)
      << "nothing was read";
  EXPECT_DOUBLE_EQ(disk_use(GenerationStats{}, 1e6).share, 0);
  EXPECT_DOUBLE_EQ(disk_use(decoding(5, 5, 1), 0).share, 0);
}

TEST(MedianRun, IsARunThatWasMade) {
  std::vector<GenerationStats> runs;
  for (const double rate : {5.0, 1.0, 4.0, 2.0, 3.0}) {
    GenerationStats stats;
    stats.decode_tok_s = rate;
    runs.push_back(stats);
  }
  EXPECT_EQ(median_run(runs), 4u);
  EXPECT_EQ(median_run(std::span(runs).first(4)), 3u) << "the slower";
  EXPECT_EQ(median_run(std::span(runs).first(1)), 0u);
}

}  // namespace
}  // namespace mlx_flash
