// SPDX-License-Identifier: MIT
#pragma once

// The parts of matmul that know the formats; called by matmul.cpp alone.

#include <cstddef>

#include "kernels/matmul.h"

namespace mlx_flash::kernels {

// y[r] = dot(x, W[r]) for r in [row_begin, row_end); y points at row 0.
using MatvecFn = void (*)(const WeightRows& w,
                          size_t row_begin,
                          size_t row_end,
                          const float* x,
                          float* y);

// Writes values [k_begin, k_end) of row r to out, then -0 up to a multiple of
// sixteen. REQUIRES: k_begin is a multiple of 256; k_end is one or is w.cols.
using DecodeFn = void (*)(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out);

// Those of the instruction set in use.
MatvecFn matvec_fn();
DecodeFn decode_fn();

}  // namespace mlx_flash::kernels
