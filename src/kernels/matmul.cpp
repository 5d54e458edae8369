// SPDX-License-Identifier: MIT
#include "kernels/matmul.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/row_kernels.h"

namespace mlx_flash::kernels {
namespace {

// Up to so many rows of x the weights are unpacked in registers for a few of
// them at a time; from there on into a panel for all of them.
constexpr size_t kMatvecTokens = 4;

void multiply_floats(const WeightRows& w,
                     size_t row_begin,
                     size_t row_end,
                     const FloatRows& x,
                     float* y,
                     size_t y_stride,
                     std::byte* scratch) {
  if (x.tokens == 1 && !integer_coded(w.format)) {
    float_matvec_fn()(w, row_begin, row_end, x.x, y);
  } else {
    float_gemm_fn()(w, row_begin, row_end, x, y, y_stride, scratch);
  }
}

}  // namespace

bool paired_products_pay() {
#if defined(__x86_64__)
  // Zen: additions go to four units, multiplications to two. Intel's vectors of
  // 512 bits have two units for both.
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") != 0;
#else
  return false;
#endif
}

size_t prepared_bytes(const WeightFormat& format, size_t cols, size_t tokens) {
  if (!integer_coded(format)) return 0;
  return FixedLayout(format, cols).row_bytes() * tokens;
}

size_t prepared_row_bytes_max(size_t cols) {
  // Two bytes for each value, sixteen for each group of 16 or more; up to seven
  // groups of 128 or fewer and a cache line to fill up.
  return cols * 2 + cols / 16 * 16 + (kChunkGroups - 1) * (128 * 2 + 16) +
         2 * 64;
}

size_t matmul_scratch_bytes() {
  return std::max(float_gemm_scratch_bytes(), fixed_gemm_scratch_bytes());
}

void matmul(const WeightRows& w,
            size_t row_begin,
            size_t row_end,
            const MatmulInput& x,
            float* y,
            size_t y_stride,
            std::byte* scratch) {
  FLASH_CHECK(format_accepts(w.format, w.cols) && row_end <= w.rows);
  if (row_begin == row_end || x.tokens == 0) return;
  if (!integer_coded(w.format)) {
    multiply_floats(
        w, row_begin, row_end, {x.x, x.stride, x.tokens}, y, y_stride, scratch);
    return;
  }
  FLASH_CHECK(x.prepared != nullptr);
  const FixedRows fixed = {FixedLayout(w.format, w.cols), x.prepared, x.tokens};
  if (x.tokens <= kMatvecTokens) {
    fixed_matvec_fn()(w, row_begin, row_end, fixed, y, y_stride);
  } else {
    fixed_gemm_fn()(w, row_begin, row_end, fixed, y, y_stride, scratch);
  }
  for (size_t t = 0; t < x.tokens; ++t) {
    if (fixed.layout.fits(x.prepared, t)) continue;
    multiply_floats(w,
                    row_begin,
                    row_end,
                    {x.x + t * x.stride, x.stride, 1},
                    y + t * y_stride,
                    y_stride,
                    scratch);
  }
}

}  // namespace mlx_flash::kernels
