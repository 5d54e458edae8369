// SPDX-License-Identifier: MIT
#pragma once

// y = x * W^T for weights as they lie in the file.
//
// One canonical arithmetic for each output element, the same for any number of
// rows of x, any split into tiles and threads, and on every instruction set:
//
//   1. w[k] is the exactly dequantised float32 value of the format
//      (kernels/dequantize.h states each).
//   2. Sixteen float32 accumulators, acc[i] = 0; for k = 0, 1, ..., cols - 1:
//      acc[k % 16] = fma(w[k], x[k], acc[k % 16]).
//   3. s[i] = acc[i] + acc[i + 8] for i < 8, t[i] = s[i] + s[i + 4] for i < 4,
//      u[i] = t[i] + t[i + 2] for i < 2, y = u[0] + u[1].
//
// Instruction sets without a fused multiply-add (below AVX2 on x86) are not
// supported: see kernels::supported().
//
// Never allocates, never blocks. Thread-compatible; the caller splits rows
// over threads.

#include <cstddef>
#include <cstdint>

#include "base/weight_format.h"

namespace mlx_flash::kernels {

// Some rows of a weight matrix in memory. Pointers need no alignment (direct
// I/O puts a tile wherever its file offset falls).
struct WeightRows {
  WeightFormat format;
  size_t rows = 0;
  size_t cols = 0;
  const std::byte* weight = nullptr;
  const std::byte* scales = nullptr;  // split formats
  const std::byte* biases = nullptr;  // affine
};

// y[t * y_stride + r] = dot(x[t * x_stride ...], W[r]) for t < tokens and
// r in [row_begin, row_end). y points at column 0 of W's first row.
// `scratch` has scratch_bytes() bytes, 64-aligned, one per thread.
// REQUIRES: format_accepts(w.format, w.cols), supported().
void matmul(const WeightRows& w,
            size_t row_begin,
            size_t row_end,
            const float* x,
            size_t x_stride,
            size_t tokens,
            float* y,
            size_t y_stride,
            std::byte* scratch);

// An upper bound for any format and any `cols`.
size_t matmul_scratch_bytes();

}  // namespace mlx_flash::kernels
