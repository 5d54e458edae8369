// SPDX-License-Identifier: MIT
#pragma once

// Random matrices of any weight format, for tests and benchmarks.

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/matmul.h"

namespace mlx_flash::kernels {

using Random = std::mt19937_64;

// Owns the parts of a matrix. Each part ends where its allocation ends, so that
// a sanitizer sees any read past it, and starts `misalignment` bytes off. Where
// rows share scales, row 0 is one of the last of a block.
class TestMatrix {
 public:
  TestMatrix(const WeightFormat& format,
             size_t rows,
             size_t cols,
             Random& random,
             size_t misalignment = 0);

  const WeightRows& rows() const { return rows_; }
  std::byte* weight() { return weight_.data() + misalignment_; }
  std::byte* scales() { return scales_.data() + misalignment_; }
  // The row of scales of row r.
  std::byte* scales_of(size_t r) {
    const size_t shared = rows_.format.scale_rows();
    return scales() + (rows_.rows_above + r) / shared *
                          row_bytes(rows_.format, rows_.cols).scales;
  }
  std::byte* biases() { return biases_.data() + misalignment_; }
  size_t bytes() const;  // of all parts

 private:
  size_t misalignment_;
  std::vector<std::byte> weight_;
  std::vector<std::byte> scales_;
  std::vector<std::byte> biases_;
  WeightRows rows_;
};

// n floats around 0; with `special`, some are zeros of both signs, denormals
// and numbers whose products underflow.
std::vector<float> random_floats(size_t n,
                                 Random& random,
                                 bool special = false);

// The instruction sets this machine can run, as Highway's bits.
std::vector<int64_t> runnable_targets();

// Makes kernels use `target` until destroyed. Not for concurrent use.
class ForcedTarget {
 public:
  explicit ForcedTarget(int64_t target);
  ~ForcedTarget();
  ForcedTarget(const ForcedTarget&) = delete;
  ForcedTarget& operator=(const ForcedTarget&) = delete;
};

std::string target_label(int64_t target);

// Equal bits, all NaNs being equal: which NaN results is left to the machine.
bool same_bits(float a, float b);

}  // namespace mlx_flash::kernels
