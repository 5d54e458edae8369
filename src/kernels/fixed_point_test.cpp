// SPDX-License-Identifier: MIT
#include "kernels/fixed_point.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/code_order.h"
#include "kernels/reference.h"
#include "kernels/test_matrix.h"

namespace mlx_flash::kernels {
namespace {

std::vector<WeightFormat> coded_formats() {
  std::vector<WeightFormat> formats;
  for (const WeightFormat& format : reference::all_formats()) {
    if (integer_coded(format)) formats.push_back(format);
  }
  return formats;
}

// A prepared row and what it says of each value of x.
class Row {
 public:
  Row(const WeightFormat& format, const std::vector<float>& x)
      : format_(format),
        layout_(format, x.size()),
        lines_(layout_.row_bytes() / sizeof(Line)) {
    std::memset(lines_.data(), 0xFF, layout_.row_bytes());
    prepare_fixed(format, x.size(), x.data(), x.size(), 0, 1, lines_[0].bytes);
  }

  const FixedLayout& layout() const { return layout_; }
  const std::byte* data() const { return lines_[0].bytes; }
  bool fits() const { return layout_.fits(data(), 0); }
  float scale(size_t g) const { return *layout_.scale(data(), 0, g); }

  // The integer of x[k].
  int value(size_t k) const {
    size_t at = k;
    if (code_order(format_) == CodeOrder::kEvensFirst) {
      at = k / 32 * 32 + k % 2 * 16 + k % 32 / 2;
    }
    return layout_.values(data(), 0)[at];
  }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  WeightFormat format_;
  FixedLayout layout_;
  std::vector<Line> lines_;
};

TEST(FixedPoint, HoldsEachValueWithinAboutHalfAStepOfItsGroup) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(21);
    for (const WeightFormat& format : coded_formats()) {
      const size_t cols = size_t{format.group_size} * 3;
      const auto x = random_floats(cols, random);
      const Row row(format, x);
      ASSERT_TRUE(row.fits());
      const size_t n = row.layout().group_size();
      for (size_t k = 0; k < cols; ++k) {
        const double step = row.scale(k / n);
        ASSERT_LE(std::fabs(step * row.value(k) - double{x[k]}), step * 0.505)
            << target_label(target) << " " << format_name(format) << " " << k;
        ASSERT_LE(std::abs(row.value(k)), 32512);
      }
    }
  }
}

TEST(FixedPoint, SumsAreOfTheIntegersAndTheRestIsZero) {
  Random random(22);
  for (const WeightFormat& format : coded_formats()) {
    const size_t cols = size_t{format.group_size} * 3;
    const Row row(format, random_floats(cols, random));
    const size_t n = row.layout().group_size();
    for (size_t g = 0; g < row.layout().groups(); ++g) {
      int sum = 0;
      for (size_t k = g * n; k < (g + 1) * n; ++k) {
        sum += k < cols ? row.value(k) : row.layout().values(row.data(), 0)[k];
      }
      if (g >= cols / n) {
        ASSERT_EQ(row.scale(g), 0.0f);
        ASSERT_EQ(sum, 0);
      }
      ASSERT_EQ(*row.layout().sum(row.data(), 0, g),
                row.scale(g) * static_cast<float>(sum));
      ASSERT_EQ(*row.layout().zero_sum(row.data(), 0, g),
                code_zero(format) * sum);
    }
  }
}

TEST(FixedPoint, TheLargestValueOfAGroupLosesAtMostARounding) {
  const WeightFormat format = affine_format(4, 64, DType::kBF16);
  std::vector<float> x(128, 1e-3f);
  x[7] = -1234.5f;
  const Row row(format, x);
  EXPECT_EQ(row.value(7), -32512);
  EXPECT_NEAR(row.scale(0) * -32512.0f, -1234.5f, 1234.5f * 0x1p-23f);
  // The huge value of one group takes nothing from another.
  EXPECT_EQ(row.value(64), 32512);
}

TEST(FixedPoint, WhatDoesNotFitIsSaid) {
  const float kInfinity = std::numeric_limits<float>::infinity();
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const WeightFormat format = block_format(WeightKind::kQ4_0);
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (float bad : {kInfinity, -kInfinity, kNan, -kNan, 0x1p65f, -0x1p65f}) {
      for (size_t at : std::initializer_list<size_t>{0, 17, 63}) {
        std::vector<float> x(64, 1.0f);
        x[at] = bad;
        EXPECT_FALSE(Row(format, x).fits()) << bad << " at " << at;
      }
    }
    for (float small : {0x1p-65f, 0x1p-149f, -0x1p-127f}) {
      std::vector<float> x(64, 0.0f);
      x[40] = small;
      EXPECT_FALSE(Row(format, x).fits()) << small;
      x[41] = 1.0f;  // beside a large one it may count as 0
      EXPECT_TRUE(Row(format, x).fits()) << small;
    }
    EXPECT_TRUE(Row(format, std::vector<float>(64, -0.0f)).fits());
    EXPECT_TRUE(Row(format, std::vector<float>(64, 0x1p64f)).fits());
    EXPECT_TRUE(Row(format, std::vector<float>(64, -0x1p-64f)).fits());
  }
}

}  // namespace
}  // namespace mlx_flash::kernels
