// SPDX-License-Identifier: MIT
#include "kernels/matmul.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/thread_pool.h"
#include "kernels/code_order.h"
#include "kernels/fixed_point.h"
#include "kernels/reference.h"
#include "kernels/row_kernels.h"
#include "kernels/test_matrix.h"
#include "kernels/vector_ops.h"

namespace mlx_flash::kernels {
namespace {

// 64-aligned scratch memory filled with NaN: nothing may rely on its contents.
class Scratch {
 public:
  Scratch() : bytes_(matmul_scratch_bytes() + 64, std::byte{0xFF}) {
    void* p = bytes_.data();
    size_t space = bytes_.size();
    data_ = static_cast<std::byte*>(
        std::align(64, matmul_scratch_bytes(), p, space));
  }
  std::byte* data() { return data_; }

 private:
  std::vector<std::byte> bytes_;
  std::byte* data_;
};

// Rows of x made ready for `w`, in memory filled with ones before.
class Prepared {
 public:
  Prepared(const WeightRows& w,
           const std::vector<float>& x,
           size_t x_stride,
           size_t tokens)
      : bytes_(prepared_bytes(w.format, w.cols, tokens) + 64, std::byte{0xFF}) {
    input_ = {x.data(), x_stride, tokens, nullptr};
    if (!integer_coded(w.format)) return;
    void* p = bytes_.data();
    size_t space = bytes_.size();
    auto* out = static_cast<std::byte*>(std::align(64, 1, p, space));
    prepare_fixed(w.format, w.cols, x.data(), x_stride, 0, tokens, out);
    input_.prepared = out;
  }
  const MatmulInput& input() const { return input_; }

 private:
  std::vector<std::byte> bytes_;
  MatmulInput input_;
};

std::vector<float> product(const WeightRows& w,
                           const std::vector<float>& x,
                           size_t x_stride,
                           size_t tokens) {
  Scratch scratch;
  const Prepared prepared(w, x, x_stride, tokens);
  std::vector<float> y(tokens * w.rows, 12345.0f);
  matmul(w, 0, w.rows, prepared.input(), y.data(), w.rows, scratch.data());
  return y;
}

std::vector<float> reference_product(const WeightRows& w,
                                     const std::vector<float>& x,
                                     size_t x_stride,
                                     size_t tokens) {
  std::vector<float> y(tokens * w.rows);
  reference::matmul(w, 0, w.rows, x.data(), x_stride, tokens, y.data(), w.rows);
  return y;
}

// The number of the first elements that differ, or -1.
int first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) return static_cast<int>(i);
  }
  return -1;
}

// The smallest width of the format that is at least `cols`.
size_t width(const WeightFormat& format, size_t cols) {
  const size_t g = format.group_size;
  return (cols + g - 1) / g * g;
}

// Widths around the vectors, the groups and the panel of each format.
std::vector<size_t> widths(const WeightFormat& format) {
  const size_t g = format.group_size;
  if (g == 1) return {1, 3, 8, 15, 16, 17, 31, 33, 100, 1023, 1025, 1029};
  if (g == 256) return {256, 768, 1280};
  return {g, 2 * g, 3 * g, 1024 + g};
}

TEST(Matmul, EqualsTheReferenceForEveryFormatAndTarget) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    ASSERT_EQ(target_label(target), target_name());
    Random random(7);
    for (const WeightFormat& format : reference::all_formats()) {
      for (size_t cols : widths(format)) {
        const size_t rows = 1 + random() % 9;
        const TestMatrix m(format, rows, cols, random, 1 + random() % 15);
        const size_t x_stride = cols + random() % 5;
        const auto x = random_floats(13 * x_stride, random, random() % 2 == 0);
        const auto expected = reference_product(m.rows(), x, x_stride, 13);
        for (size_t tokens : std::initializer_list<size_t>{1, 2, 3, 4, 8, 13}) {
          const auto y = product(m.rows(), x, x_stride, tokens);
          const int where = first_difference(y, expected);
          ASSERT_EQ(where, -1)
              << target_label(target) << " " << format_name(format) << " cols "
              << cols << " rows " << rows << " tokens " << tokens;
        }
      }
    }
  }
}

TEST(Matmul, TokensPastOneBlockAndRowsPastOnePanelEqualTheReference) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(8);
    for (const WeightFormat& format : {dense_format(DType::kBF16),
                                       affine_format(4, 64, DType::kBF16),
                                       block_format(WeightKind::kQ4_K)}) {
      const TestMatrix m(format, 37, 1280, random, 3);
      for (size_t tokens : std::initializer_list<size_t>{63, 64, 65, 131}) {
        const auto x = random_floats(tokens * 1280, random);
        ASSERT_EQ(
            first_difference(product(m.rows(), x, 1280, tokens),
                             reference_product(m.rows(), x, 1280, tokens)),
            -1)
            << target_label(target) << " " << format_name(format) << " "
            << tokens;
      }
    }
  }
}

TEST(Matmul, AnyRowSplitGivesTheSameBitsAndTouchesNothingElse) {
  Random random(9);
  for (const WeightFormat& format : reference::all_formats()) {
    const size_t cols = width(format, 40);
    const size_t rows = 23;
    const TestMatrix m(format, rows, cols, random);
    for (size_t tokens : std::initializer_list<size_t>{1, 5, 9}) {
      const auto x = random_floats(tokens * cols, random);
      const auto whole = product(m.rows(), x, cols, tokens);
      const size_t stride = rows + 3;
      std::vector<float> y(tokens * stride, 777.0f);
      Scratch scratch;
      const Prepared prepared(m.rows(), x, cols, tokens);
      for (size_t begin = 0; begin < rows;) {
        const size_t end = std::min(rows, begin + random() % 6);
        matmul(m.rows(),
               begin,
               end,
               prepared.input(),
               y.data(),
               stride,
               scratch.data());
        begin = end;
      }
      for (size_t t = 0; t < tokens; ++t) {
        for (size_t r = 0; r < stride; ++r) {
          const float expected = r < rows ? whole[t * rows + r] : 777.0f;
          ASSERT_TRUE(same_bits(y[t * stride + r], expected))
              << format_name(format) << " token " << t << " row " << r;
        }
      }
    }
  }
}

TEST(Matmul, InfinitiesAndNansInScalesReachTheSameOutputs) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(10);
    for (const WeightFormat& format : reference::all_formats()) {
      const size_t cols = width(format, 48);
      TestMatrix m(format, 6, cols, random);
      const RowBytes bytes = row_bytes(format, cols);
      // All bits set is NaN or infinite in every kind of scale and number.
      std::memset(m.weight() + 2 * bytes.weight, 0xFF, bytes.weight);
      if (bytes.scales > 0) {
        std::memset(m.scales_of(3), 0xFF, bytes.scales);
        std::memset(m.scales_of(4), 0, bytes.scales);
      }
      auto x = random_floats(2 * cols, random);
      x[cols + 5] = INFINITY;
      for (size_t tokens : std::initializer_list<size_t>{1, 2}) {
        ASSERT_EQ(
            first_difference(product(m.rows(), x, cols, tokens),
                             reference_product(m.rows(), x, cols, tokens)),
            -1)
            << target_label(target) << " " << format_name(format);
      }
    }
  }
}

// One row of x that fixed point cannot hold, among others that it can: it is
// multiplied in float32, and changes nothing for its neighbours.
TEST(Matmul, ARowThatDoesNotFitIsMultipliedInFloat32) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(14);
    for (const WeightFormat& format : reference::all_formats()) {
      const size_t cols = width(format, 100);
      const TestMatrix m(format, 5, cols, random);
      for (float odd : {INFINITY, -INFINITY, NAN, 1e25f, 1e-30f}) {
        for (size_t tokens : std::initializer_list<size_t>{3, 14}) {
          auto x = random_floats(tokens * cols, random);
          const auto plain = product(m.rows(), x, cols, tokens);
          float* row = x.data() + cols;  // the second one
          if (odd == 1e-30f) std::fill_n(row, cols, 0.0f);
          row[9] = odd;
          const auto y = product(m.rows(), x, cols, tokens);
          ASSERT_EQ(
              first_difference(y, reference_product(m.rows(), x, cols, tokens)),
              -1)
              << target_label(target) << " " << format_name(format) << odd;
          for (size_t r = 0; r < 5; ++r) {
            ASSERT_EQ(y[r], plain[r]);
            ASSERT_EQ(y[2 * 5 + r], plain[2 * 5 + r]);
            ASSERT_TRUE(std::isfinite(odd) || !std::isfinite(y[5 + r]));
          }
        }
      }
    }
  }
}

// Against float64 on the dequantised weights: what is rounded is x, to 0.505 /
// 32512 of its group's largest value, and sums, in float32.
TEST(Matmul, ErrorAgainstFloat64IsWithinTheStatedBound) {
  Random random(15);
  for (const WeightFormat& format : reference::all_formats()) {
    const size_t cols = width(format, 1000);
    const TestMatrix m(format, 4, cols, random);
    const auto x = random_floats(cols, random);
    const auto y = product(m.rows(), x, cols, 1);
    const size_t group = integer_coded(format) ? scale_group(format) : cols;
    for (size_t r = 0; r < 4; ++r) {
      double exact = 0;
      double bound = 0;
      for (size_t g = 0; g < cols; g += group) {
        double magnitude = 0;  // sum |w|
        double largest = 0;
        for (size_t k = g; k < g + group; ++k) {
          const double w = reference::weight(m.rows(), r, k);
          exact += w * double{x[k]};
          magnitude += std::fabs(w);
          largest = std::max(largest, std::fabs(double{x[k]}));
          // Products and sums in float32; codes and offsets apart are larger
          // than the weight.
          double parts = std::fabs(w);
          if (integer_coded(format)) {
            const auto c = reference::coded_weight(m.rows(), r, k);
            parts = std::fabs(double{c.scale} * c.code) +
                    std::fabs(double{c.offset.value_or(0)});
          }
          bound += parts * largest * 0x1p-24 * 8;
        }
        if (integer_coded(format))
          bound += magnitude * largest * (0.505 / 32512);
      }
      ASSERT_LE(std::fabs(double{y[r]} - exact), bound) << format_name(format);
    }
  }
}

// What a thread takes, and how many there are, is no part of the arithmetic;
// nor is the number of rows of x, from one to more than a panel's.
TEST(Matmul, ThreadsAndBatchesChangeNoBit) {
  constexpr size_t kTokens = 512;
  for (const WeightFormat& format : {affine_format(4, 64, DType::kBF16),
                                     affine_format(8, 32, DType::kF16),
                                     block_format(WeightKind::kQ4_0),
                                     block_format(WeightKind::kQ8_0),
                                     block_format(WeightKind::kQ4_K),
                                     block_format(WeightKind::kQ6_K),
                                     dense_format(DType::kBF16)}) {
    Random random(16);
    const size_t cols = width(format, 512);
    const size_t rows = 75;
    const TestMatrix m(format, rows, cols, random);
    const auto x = random_floats(kTokens * cols, random);
    const auto whole = product(m.rows(), x, cols, kTokens);
    for (size_t t : std::initializer_list<size_t>{0, 7, 300, 511}) {
      const std::vector<float> one(
          x.begin() + static_cast<ptrdiff_t>(t * cols),
          x.begin() + static_cast<ptrdiff_t>((t + 1) * cols));
      const auto y = product(m.rows(), one, cols, 1);
      for (size_t r = 0; r < rows; ++r) {
        ASSERT_TRUE(same_bits(y[r], whole[t * rows + r]))
            << format_name(format);
      }
    }
    for (int threads : {1, 2, 3, 8}) {
      ThreadPool pool(threads);
      std::vector<Scratch> scratch(static_cast<size_t>(threads));
      for (size_t tokens : std::initializer_list<size_t>{1, 7, kTokens}) {
        const Prepared prepared(m.rows(), x, cols, tokens);
        std::vector<float> y(tokens * rows, 12345.0f);
        pool.parallel_for(rows, 5, [&](size_t begin, size_t end, int thread) {
          matmul(m.rows(),
                 begin,
                 end,
                 prepared.input(),
                 y.data(),
                 rows,
                 scratch[static_cast<size_t>(thread)].data());
        });
        for (size_t i = 0; i < y.size(); ++i) {
          ASSERT_TRUE(same_bits(y[i], whole[i]))
              << format_name(format) << " " << threads << " threads, " << tokens
              << " rows of x";
        }
      }
    }
  }
}

// The same weights in MLX's parts and in GGUF's blocks are one matrix: mxfp4's
// neighbours of a byte lie there sixteen apart.
TEST(Matmul, Mxfp4IsTheSameInPartsAndInBlocks) {
  constexpr size_t kRows = 35;
  constexpr size_t kCols = 32 * 21;
  constexpr size_t kGroups = kRows * kCols / 32;
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(18);
    TestMatrix parts(block_format(WeightKind::kMxfp4), kRows, kCols, random);
    TestMatrix blocks(
        block_format(WeightKind::kGgufMxfp4), kRows, kCols, random);
    parts.scales()[0] = std::byte{0};  // denormal
    parts.scales()[1] = std::byte{1};
    parts.scales()[2] = std::byte{254};
    for (size_t g = 0; g < kGroups; ++g) {
      const std::byte* from = parts.weight() + 16 * g;
      std::byte* to = blocks.weight() + 17 * g;
      to[0] = parts.scales()[g];
      const auto code = [&](size_t i) {
        return (from[i / 2] >> (i % 2 * 4)) & std::byte{15};
      };
      for (size_t i = 0; i < 16; ++i) to[1 + i] = code(i) | code(i + 16) << 4;
    }
    const auto x = random_floats(40 * kCols, random);
    for (size_t tokens : std::initializer_list<size_t>{1, 5, 40}) {
      ASSERT_EQ(first_difference(product(parts.rows(), x, kCols, tokens),
                                 product(blocks.rows(), x, kCols, tokens)),
                -1)
          << target_label(target) << " " << tokens;
    }
    blocks.weight()[17 * kGroups - 1] ^= std::byte{0x30};
    EXPECT_NE(first_difference(product(parts.rows(), x, kCols, 1),
                               product(blocks.rows(), x, kCols, 1)),
              -1);
  }
}

// Taking products in pairs is a matter of speed alone.
TEST(Matmul, PairedProductsGiveTheSameBits) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(17);
    for (const WeightFormat& format : reference::all_formats()) {
      if (!integer_coded(format)) continue;
      const size_t cols = width(format, 1300);
      const TestMatrix m(format, 35, cols, random);
      // The largest numbers of either sign, whose sums of pairs overflow.
      auto x = random_floats(9 * cols, random);
      for (size_t k = 0; k < cols; ++k) x[k] = k % 3 == 0 ? -1.0f : 1.0f;
      const Prepared prepared(m.rows(), x, cols, 9);
      FixedRows rows = {
          FixedLayout(format, cols), prepared.input().prepared, 9};
      Scratch scratch;
      std::vector<float> y[2];
      for (const bool paired : {false, true}) {
        rows.paired = paired;
        y[paired].resize(9 * 35);
        fixed_gemm_fn()(
            m.rows(), 0, 35, rows, y[paired].data(), 35, scratch.data());
      }
      ASSERT_EQ(first_difference(y[0], y[1]), -1)
          << target_label(target) << " " << format_name(format);
      ASSERT_EQ(first_difference(y[0], reference_product(m.rows(), x, cols, 9)),
                -1)
          << target_label(target) << " " << format_name(format);
    }
  }
}

TEST(Matmul, MoreThanOneInstructionSetIsTried) {
  std::string names;
  for (int64_t target : runnable_targets()) {
    names += " " + target_label(target);
  }
  std::printf("instruction sets:%s\n", names.c_str());
#if defined(__x86_64__)
  // AVX2 runs on all that has AVX-512; with that, two at least.
  if (__builtin_cpu_supports("avx512bw")) {
    EXPECT_GE(runnable_targets().size(), 2u) << names;
  }
  if (__builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512vbmi2")) {
    EXPECT_GE(runnable_targets().size(), 3u) << names;
  }
#endif
  EXPECT_GE(runnable_targets().size(), 1u);
}

// Sums that only a tail of the canonical order gives: negative zero survives.
TEST(Matmul, UnderflowToMinusZeroSurvivesTheEndOfARow) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(11);
    TestMatrix m(dense_format(DType::kF32), 1, 24, random);
    std::vector<float> w(24, 1e-30f);
    std::memcpy(m.weight(), w.data(), 96);
    const std::vector<float> x(48, -1e-30f);
    for (size_t tokens : std::initializer_list<size_t>{1, 2}) {
      const auto y = product(m.rows(), x, 24, tokens);
      EXPECT_TRUE(same_bits(y[0], -0.0f)) << target_label(target);
    }
  }
}

// The test above would be empty if any order gave these bits.
TEST(Matmul, AnotherOrderOfSummationGivesOtherBits) {
  Random random(12);
  const TestMatrix m(affine_format(4, 64, DType::kF16), 16, 512, random);
  const auto x = random_floats(512, random);
  const auto y = product(m.rows(), x, 512, 1);
  std::vector<float> eight(16);
  for (size_t r = 0; r < 16; ++r) {
    float acc[8] = {};
    for (size_t k = 0; k < 512; ++k) {
      acc[k % 8] =
          std::fma(reference::weight(m.rows(), r, k), x[k], acc[k % 8]);
    }
    eight[r] = ((acc[0] + acc[4]) + (acc[2] + acc[6])) +
               ((acc[1] + acc[5]) + (acc[3] + acc[7]));
  }
  EXPECT_NE(first_difference(y, eight), -1);
  EXPECT_EQ(first_difference(y, reference_product(m.rows(), x, 512, 1)), -1);
}

TEST(Matmul, EveryWeightAndEveryInputCounts) {
  Random random(13);
  for (const WeightFormat& format : reference::all_formats()) {
    const size_t cols = width(format, 21);
    const TestMatrix m(format, 1, cols, random);
    for (size_t k = 0; k < cols; ++k) {
      std::vector<float> x(cols, 0.0f);
      x[k] = 1.0f;
      // A sum of zeros and one product is the weight itself, but for the few
      // roundings of s * 32512 and of sums that cancel.
      float tolerance = 0;
      if (integer_coded(format)) {
        const auto c = reference::coded_weight(m.rows(), 0, k);
        tolerance = (std::fabs(c.scale * static_cast<float>(c.code)) +
                     std::fabs(c.offset.value_or(0))) *
                    0x1p-22f;
      }
      ASSERT_NEAR(product(m.rows(), x, cols, 1)[0],
                  reference::weight(m.rows(), 0, k),
                  tolerance)
          << format_name(format) << " " << k;
    }
  }
}

}  // namespace
}  // namespace mlx_flash::kernels
