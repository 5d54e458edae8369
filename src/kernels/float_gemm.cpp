// SPDX-License-Identifier: MIT
#include <algorithm>

#include "base/check.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/float_gemm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/lanes-inl.h"
#endif

// Rows of x in float32: a panel of weights is decoded once into scratch memory
// and multiplied by a block of rows of x. Accumulators stay in scratch memory
// between panels, so every output sees its weights in the canonical order.

#ifndef MLX_FLASH_KERNELS_MATMUL_BLOCKING_
#define MLX_FLASH_KERNELS_MATMUL_BLOCKING_
namespace mlx_flash::kernels {

constexpr size_t kPanelRows = 16;    // rows of W in a panel
constexpr size_t kPanelCols = 1024;  // values of each: 64 KiB, half of an L2
constexpr size_t kBlockTokens = 64;  // rows of x that share a decoded panel

struct Scratch {
  float panel[kPanelRows * kPanelCols];
  float acc[kPanelRows * kBlockTokens * 16];  // [row][token][16]
  float x_tail[kBlockTokens * 16];            // the last cols % 16 of x, then 0
};

}  // namespace mlx_flash::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

void float_gemm(const WeightRows&,
                size_t,
                size_t,
                const FloatRows&,
                float*,
                size_t,
                DecodeFn,
                Scratch*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Registers of a tile: rows of W times rows of x, within 32 or 16 of them.
constexpr size_t kTileRows = 4;
constexpr size_t kTileTokens = kN == 8 ? 3 : 6;

// acc[r][t] += w[r][..] * x[t][..] over `steps` times sixteen values.
template <size_t kR, size_t kT>
void tile(const float* HWY_RESTRICT w,
          size_t w_stride,
          const float* HWY_RESTRICT x,
          size_t x_stride,
          size_t steps,
          float* HWY_RESTRICT acc) {
  // Parts one after the other: they share no accumulator.
  for (size_t part = 0; part < 16; part += kN) {
    VF sum[kR][kT];
    for (size_t r = 0; r < kR; ++r) {
      for (size_t t = 0; t < kT; ++t) {
        sum[r][t] = hn::Load(DF(), acc + (r * kBlockTokens + t) * 16 + part);
      }
    }
    const float* wk = w + part;
    const float* xk = x + part;
    for (size_t i = 0; i < steps; ++i, wk += 16, xk += 16) {
      VF wv[kR];
      for (size_t r = 0; r < kR; ++r) {
        wv[r] = hn::Load(DF(), wk + r * w_stride);
      }
      for (size_t t = 0; t < kT; ++t) {
        const VF xv = hn::LoadU(DF(), xk + t * x_stride);
        for (size_t r = 0; r < kR; ++r) {
          sum[r][t] = hn::MulAdd(wv[r], xv, sum[r][t]);
        }
      }
    }
    for (size_t r = 0; r < kR; ++r) {
      for (size_t t = 0; t < kT; ++t) {
        hn::Store(sum[r][t], DF(), acc + (r * kBlockTokens + t) * 16 + part);
      }
    }
  }
}

using TileFn =
    void (*)(const float*, size_t, const float*, size_t, size_t, float*);

template <size_t kR, size_t kT>
constexpr TileFn tile_or_null() {
  if constexpr (kT > kTileTokens) {
    return nullptr;
  } else {
    return &tile<kR, kT>;
  }
}

// Tiles of each size up to the largest, by rows - 1 and tokens - 1.
#define FLASH_TILES(r)                                                   \
  {                                                                      \
    tile_or_null<r, 1>(), tile_or_null<r, 2>(), tile_or_null<r, 3>(),    \
        tile_or_null<r, 4>(), tile_or_null<r, 5>(), tile_or_null<r, 6>() \
  }
constexpr TileFn kTiles[kTileRows][6] = {
    FLASH_TILES(1), FLASH_TILES(2), FLASH_TILES(3), FLASH_TILES(4)};
#undef FLASH_TILES

// One panel times one block of rows of x.
void multiply_panel(const float* panel,
                    size_t rows,
                    const float* x,
                    size_t x_stride,
                    size_t tokens,
                    size_t steps,
                    float* acc) {
  for (size_t t = 0; t < tokens; t += kTileTokens) {
    const size_t nt = std::min(kTileTokens, tokens - t);
    for (size_t r = 0; r < rows; r += kTileRows) {
      const size_t nr = std::min(kTileRows, rows - r);
      kTiles[nr - 1][nt - 1](panel + r * kPanelCols,
                             kPanelCols,
                             x + t * x_stride,
                             x_stride,
                             steps,
                             acc + (r * kBlockTokens + t) * 16);
    }
  }
}

// Rows [r0, r0 + rows) of W times one block of rows of x.
void multiply_rows(const WeightRows& w,
                   size_t r0,
                   size_t rows,
                   const float* x,
                   size_t x_stride,
                   size_t tokens,
                   DecodeFn decode,
                   Scratch* scratch) {
  std::fill_n(scratch->acc, rows * kBlockTokens * 16, 0.0f);
  for (size_t k = 0; k < w.cols; k += kPanelCols) {
    const size_t k_end = std::min(w.cols, k + kPanelCols);
    for (size_t r = 0; r < rows; ++r) {
      decode(w, r0 + r, k, k_end, scratch->panel + r * kPanelCols);
    }
    const size_t steps = (k_end - k) / 16;
    multiply_panel(
        scratch->panel, rows, x + k, x_stride, tokens, steps, scratch->acc);
    if ((k_end - k) % 16 != 0) {
      multiply_panel(scratch->panel + steps * 16,
                     rows,
                     scratch->x_tail,
                     16,
                     tokens,
                     1,
                     scratch->acc);
    }
  }
}

void float_gemm(const WeightRows& w,
                size_t row_begin,
                size_t row_end,
                const FloatRows& x,
                float* y,
                size_t y_stride,
                DecodeFn decode,
                Scratch* scratch) {
  const size_t tail = w.cols % 16;
  for (size_t t0 = 0; t0 < x.tokens; t0 += kBlockTokens) {
    const size_t nt = std::min(kBlockTokens, x.tokens - t0);
    const float* xt = x.x + t0 * x.stride;
    if (tail != 0) {
      std::fill_n(scratch->x_tail, nt * 16, 0.0f);
      for (size_t t = 0; t < nt; ++t) {
        std::copy_n(
            xt + t * x.stride + w.cols - tail, tail, scratch->x_tail + t * 16);
      }
    }
    for (size_t r0 = row_begin; r0 < row_end; r0 += kPanelRows) {
      const size_t nr = std::min(kPanelRows, row_end - r0);
      multiply_rows(w, r0, nr, xt, x.stride, nt, decode, scratch);
      for (size_t t = 0; t < nt; ++t) {
        for (size_t r = 0; r < nr; ++r) {
          y[(t0 + t) * y_stride + r0 + r] =
              reduce16(load16(scratch->acc + (r * kBlockTokens + t) * 16));
        }
      }
    }
  }
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(float_gemm);

size_t float_gemm_scratch_bytes() {
  return sizeof(Scratch);
}

namespace {

void call_float_gemm(const WeightRows& w,
                     size_t row_begin,
                     size_t row_end,
                     const FloatRows& x,
                     float* y,
                     size_t y_stride,
                     std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(float_gemm)
  (w,
   row_begin,
   row_end,
   x,
   y,
   y_stride,
   decode_fn(),
   reinterpret_cast<Scratch*>(scratch));
}

}  // namespace

FloatGemmFn float_gemm_fn() {
  return &call_float_gemm;
}

}  // namespace mlx_flash::kernels
#endif
