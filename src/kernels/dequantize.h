// SPDX-License-Identifier: MIT
#pragma once

// The exact float32 value of every stored weight, format by format.
//
//   affine     w = fma(scale, q, bias), scale and bias widened to float32
//   mxfp4      w = e2m1(q) * 2^(scale - 127)
//   mxfp8      w = e4m3(q) * 2^(scale - 127)
//   fp8        w = bfloat16(e4m3(q) * scale), the product and the nearest of
//              bfloat16 rounded to even: what mlx-lm makes of it
//   nvfp4      w = e2m1(q) * e4m3(scale)
//   Q4_0       w = d * (q - 8)
//   Q4_1       w = fma(d, q, m)
//   Q5_0       w = d * (q - 16)
//   Q5_1       w = fma(d, q, m)
//   Q8_0       w = d * q
//   Q2_K..Q6_K as in ggml's dequantize_row_*, with the sub-block scale
//              multiplied into d first, then fma with the minimum
//   MXFP4      w = 2 * e2m1(q) * 2^(scale - 128): mxfp4's numbers but for -0,
//              which ggml takes for 0, and a scale of 255, which is a number
//              to ggml and infinite to MLX
//
// (ggml-common.h has the block layouts; MLX's docs for `quantize` the rest.)
// Never allocates. Thread-compatible.

#include <cstddef>

#include "kernels/matmul.h"

namespace mlx_flash::kernels {

// Writes row r of w to out[0, cols). REQUIRES: r < w.rows.
void dequantize_row(const WeightRows& w, size_t r, float* out);

}  // namespace mlx_flash::kernels
