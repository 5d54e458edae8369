// SPDX-License-Identifier: MIT
#include "kernels/measure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>

namespace mlx_flash::kernels {
namespace {

MeasureOptions tiny() {
  MeasureOptions options;
  options.rows = 40;
  options.cols = 256;
  options.weight_bytes = size_t{1} << 20;
  options.seconds = 0;
  options.tokens = {1, 9};
  return options;
}

TEST(MeasureKernels, GivesAFigureForEveryFormatAndNumberOfTokens) {
  ThreadPool pool(2);
  const KernelSpeeds speeds = measure_kernels(pool, tiny());
  EXPECT_GT(speeds.dram_bytes_per_s, 0);
  EXPECT_GT(speeds.fma_flops, 0);
  EXPECT_EQ(speeds.kernels.size(), 2 * measured_formats().size());
  std::set<std::string> names;
  for (const KernelSpeed& k : speeds.kernels) {
    names.insert(format_name(k.format));
    EXPECT_GT(k.flops, 0) << format_name(k.format);
    EXPECT_GT(k.dram_share, 0) << format_name(k.format);
    EXPECT_GT(k.mix_share, 0) << format_name(k.format);
    // Two operations for each weight and token.
    const double weights = 256.0 * 40;
    const auto bytes = static_cast<double>(matrix_bytes(k.format, 40, 256));
    EXPECT_NEAR(k.flops / k.bytes_per_s,
                2 * weights * static_cast<double>(k.tokens) / bytes,
                1e-6 * k.flops / k.bytes_per_s);
  }
  EXPECT_EQ(names.size(), measured_formats().size());
}

TEST(MeasureKernels, EndsWhenAskedTo) {
  ThreadPool pool(1);
  MeasureOptions options = tiny();
  options.progress = [](size_t done, size_t total) {
    EXPECT_LT(done, total);
    return done < 4;
  };
  EXPECT_EQ(measure_kernels(pool, options).kernels.size(), 2u);
}

}  // namespace
}  // namespace mlx_flash::kernels
