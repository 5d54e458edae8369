// SPDX-License-Identifier: MIT
#pragma once

// Inputs of the kernels for integer-coded weights: rows of x as 16-bit fixed
// point, made once for a matrix and shared by its tiles and threads.
//
// Each group of the weight format (16, 32, 64 or 128 values that share a
// scale) gets a scale of its own:
//
//   m  = max |x[k]| of the group
//   s  = m / 32512, v = 32512 / m     (both 0 if m is 0; float32 divisions)
//   q[k] = x[k] * v, rounded to float32, then to the nearest integer (ties to
//          even): an int16 of at most 32512
//   S  = sum of q[k], exact
//
// so that x[k] is s * q[k] within 0.505 s (half a step and the roundings of v,
// s and the product): 2^-15.9 of the group's largest value. 32512 leaves room
// for a code of 8 bits: q + code is an int16 still (fixed_gemm.cpp). A row with
// a group whose m is neither 0 nor within [2^-64, 2^64], infinities and NaN
// among them, does not fit (`fits` is false, all else 0): kernels multiply it
// in float32.

#include <cstddef>
#include <cstdint>

#include "base/weight_format.h"

namespace mlx_flash::kernels {

inline constexpr float kFixedLargest = 32512.0f;
inline constexpr float kFixedRangeLow = 0x1p-64f;
inline constexpr float kFixedRangeHigh = 0x1p64f;

// Groups that kernels take at once. Rows are filled up with groups of zeros to
// a multiple of it.
inline constexpr size_t kChunkGroups = 8;

// Which products of a group, by the places of its values, are taken in pairs
// (fixed_gemm.cpp): of each sixteen the first twelve. Pairs make additions of
// multiplications; with all of them additions would be the bottleneck.
inline constexpr size_t kPairCycle = 16;
constexpr bool taken_in_pairs(size_t k) {
  return k % kPairCycle < 12;
}

// Whether the format's weights are integers times a scale.
bool integer_coded(const WeightFormat& format);

// Where a prepared row's parts lie. The values of a group stand in the order in
// which the format's codes come out of their bytes (CodeOrder).
class FixedLayout {
 public:
  FixedLayout(const WeightFormat& format, size_t cols);

  size_t group_size() const { return group_size_; }
  size_t groups() const { return groups_; }  // whole chunks of them
  size_t row_bytes() const { return row_bytes_; }

  // Behind a row's beginning: the four numbers of group g, and whether it fits.
  size_t number_at(size_t g) const {
    return numbers_at_ + g / kChunkGroups * kChunkNumberBytes +
           g % kChunkGroups * 4;
  }
  size_t fits_at() const { return number_at(groups_); }
  // From a group's scale to its other numbers.
  static constexpr size_t kSumAt = kChunkGroups * 4;
  static constexpr size_t kZeroSumAt = kChunkGroups * 8;
  static constexpr size_t kPairStartAt = kChunkGroups * 12;

  // Parts of row t of `rows`.
  const int16_t* values(const std::byte* rows, size_t t) const {
    return part<int16_t>(rows, t, 0);
  }
  // Of group g; the numbers of a chunk's groups lie side by side.
  const float* scale(const std::byte* rows, size_t t, size_t g) const {  // s
    return part<float>(rows, t, number_at(g));
  }
  const float* sum(const std::byte* rows, size_t t, size_t g) const {  // s * S
    return part<float>(rows, t, number_at(g) + kSumAt);
  }
  // zero * S, where code - zero is what a weight's scale multiplies.
  const int32_t* zero_sum(const std::byte* rows, size_t t, size_t g) const {
    return part<int32_t>(rows, t, number_at(g) + kZeroSumAt);
  }
  // What a sum of paired products starts with (fixed_gemm.cpp), modulo 2^32:
  // -zero * S - the sum of q[4i] q[4i + 2] + q[4i + 1] q[4i + 3], as they lie,
  // of those taken in pairs.
  const int32_t* pair_start(const std::byte* rows, size_t t, size_t g) const {
    return part<int32_t>(rows, t, number_at(g) + kPairStartAt);
  }
  bool fits(const std::byte* rows, size_t t) const {
    return *part<uint32_t>(rows, t, fits_at()) != 0;
  }

 private:
  template <typename T>
  const T* part(const std::byte* rows, size_t t, size_t offset) const {
    return reinterpret_cast<const T*>(rows + t * row_bytes_ + offset);
  }

  static constexpr size_t kChunkNumberBytes = kChunkGroups * 16;

  size_t group_size_;
  size_t groups_;
  size_t numbers_at_;
  size_t row_bytes_;
};

// Prepares rows [begin, end) of x, row t to `out` + t * layout.row_bytes().
// `out` is 64-aligned. Any split over threads gives the same bytes.
// REQUIRES: integer_coded(format), format_accepts(format, cols), supported().
void prepare_fixed(const WeightFormat& format,
                   size_t cols,
                   const float* x,
                   size_t x_stride,
                   size_t begin,
                   size_t end,
                   std::byte* out);

}  // namespace mlx_flash::kernels
