// SPDX-License-Identifier: MIT
#pragma once

// y = x * W^T for weights as they lie in the file.
//
// One canonical arithmetic for each output element, the same for any number of
// rows of x, any split into tiles and threads, and on every instruction set.
//
// A. Weights that are floating-point numbers (float32, float16, bfloat16,
//    mxfp8, fp8), and rows of x that do not fit fixed point:
//
//   1. w[k] is the exactly dequantised float32 value of the format
//      (kernels/dequantize.h states each).
//   2. Sixteen float32 accumulators, acc[i] = 0; for k = 0, 1, ..., cols - 1:
//      acc[k % 16] = fma(w[k], x[k], acc[k % 16]).
//   3. s[i] = acc[i] + acc[i + 8] for i < 8, t[i] = s[i] + s[i + 4] for i < 4,
//      u[i] = t[i] + t[i + 2] for i < 2, y = u[0] + u[1].
//
// B. Weights that are integer codes with a scale, and maybe an offset, for each
//    group (affine, mxfp4, nvfp4, Q4_0 ... Q6_K, MXFP4):
//
//   1. x becomes 16-bit fixed point, group by group: s[g], q[k], S[g] of
//      kernels/fixed_point.h. This is the only rounding beyond float32's own.
//   2. I[g] = sum of (code[k] - zero) * q[k] over the group, in int32: exact,
//      whatever the order (at most 255 * 32512 * 128 < 2^31).
//   3. Eight float32 accumulators, acc[i] = 0; for g = 0, 1, ..., with groups
//      of zeros (scale, offset, s, S, I all 0) up to a multiple of eight:
//      acc[g % 8] = fma(scale[g] * s[g], float(I[g]), acc[g % 8]); then, if the
//      format has offsets, acc[g % 8] = fma(offset[g], s[g] * float(S[g]),
//      acc[g % 8]). Every product and conversion is rounded to float32.
//   4. t[i] = acc[i] + acc[i + 4] for i < 4, u[i] = t[i] + t[i + 2] for i < 2,
//      y = u[0] + u[1].
//
//    For K-quants scale[g] = d * sc[g] and offset[g] = -(dmin * m[g]), rounded
//    to float32; mxfp4, MXFP4 and nvfp4 count in
//    halves: the same weights give the same bits in MLX's parts and in GGUF's
//    blocks (save with scales of 255, kernels/dequantize.h).
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

// Rows of a matrix that kernels take at once, at most: ranges that begin at
// multiples of it waste nothing.
inline constexpr size_t kRowGrain = 32;

// Some rows of a weight matrix in memory. Pointers need no alignment (direct
// I/O puts a tile wherever its file offset falls).
struct WeightRows {
  WeightFormat format;
  size_t rows = 0;
  size_t cols = 0;
  const std::byte* weight = nullptr;
  const std::byte* scales = nullptr;  // split formats
  const std::byte* biases = nullptr;  // affine
  // Rows above row 0 that share its row of scales, to which `scales` points
  // (fp8: a tile may begin inside of a block).
  size_t rows_above = 0;
};

// `tokens` rows of x.
struct MatmulInput {
  const float* x = nullptr;
  size_t stride = 0;  // from row to row
  size_t tokens = 0;
  // What prepare_fixed() made of them for the weights' format: needed where
  // prepared_bytes() is not 0.
  const std::byte* prepared = nullptr;
};

// Bytes of MatmulInput::prepared; 0 for weights that are floats.
size_t prepared_bytes(const WeightFormat& format, size_t cols, size_t tokens);

// An upper bound of prepared_bytes() of one row for any format.
size_t prepared_row_bytes_max(size_t cols);

// y[t * y_stride + r] = dot(x row t, W[r]) for each row of x and r in
// [row_begin, row_end). y points at column 0 of W's first row.
// `scratch` has matmul_scratch_bytes() bytes, 64-aligned, one per thread.
// REQUIRES: format_accepts(w.format, w.cols), supported().
void matmul(const WeightRows& w,
            size_t row_begin,
            size_t row_end,
            const MatmulInput& x,
            float* y,
            size_t y_stride,
            std::byte* scratch);

// An upper bound for any format and any `cols`.
size_t matmul_scratch_bytes();

}  // namespace mlx_flash::kernels
