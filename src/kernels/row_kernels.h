// SPDX-License-Identifier: MIT
#pragma once

// The parts of matmul that know the formats; called by matmul.cpp alone. All
// compute rows [row_begin, row_end) of W; y points at row 0.

#include <cstddef>

#include "kernels/fixed_point.h"
#include "kernels/matmul.h"

namespace mlx_flash::kernels {

// Rows of x in float32.
struct FloatRows {
  const float* x;
  size_t stride;
  size_t tokens;
};

// Whether this machine adds 16-bit numbers beside multiplying them, so that
// trading multiplications for additions pays.
bool paired_products_pay();

// Rows of x as prepare_fixed() left them.
struct FixedRows {
  FixedLayout layout;
  const std::byte* rows;
  size_t tokens;
  // Sums over groups go to chain g % chains. Anything but eight is for
  // measuring what the canonical order costs.
  size_t chains = kChunkGroups;
  // Take products two at a time where the kernel can (fixed_gemm.cpp). The
  // same bits.
  bool paired = paired_products_pay();
};

// Float formats, one row of x: y[r] = dot(x, W[r]).
using FloatMatvecFn = void (*)(const WeightRows& w,
                               size_t row_begin,
                               size_t row_end,
                               const float* x,
                               float* y);

// Any format, any number of rows of x, in float32.
using FloatGemmFn = void (*)(const WeightRows& w,
                             size_t row_begin,
                             size_t row_end,
                             const FloatRows& x,
                             float* y,
                             size_t y_stride,
                             std::byte* scratch);

// Integer-coded formats. Rows of x that do not fit give zeros or NaN.
using FixedMatvecFn = void (*)(const WeightRows& w,
                               size_t row_begin,
                               size_t row_end,
                               const FixedRows& x,
                               float* y,
                               size_t y_stride);
using FixedGemmFn = void (*)(const WeightRows& w,
                             size_t row_begin,
                             size_t row_end,
                             const FixedRows& x,
                             float* y,
                             size_t y_stride,
                             std::byte* scratch);

// Writes values [k_begin, k_end) of row r to out, then -0 up to a multiple of
// sixteen. REQUIRES: k_begin is a multiple of 1024; k_end is one or is w.cols.
using DecodeFn = void (*)(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out);

// Those of the instruction set in use.
FloatMatvecFn float_matvec_fn();
FloatGemmFn float_gemm_fn();
FixedMatvecFn fixed_matvec_fn();
FixedGemmFn fixed_gemm_fn();
// Whether it takes products in pairs by default.
bool fixed_gemm_pairs();
DecodeFn decode_fn();

// Bytes of their scratch, 64-aligned.
size_t float_gemm_scratch_bytes();
size_t fixed_gemm_scratch_bytes();

}  // namespace mlx_flash::kernels
