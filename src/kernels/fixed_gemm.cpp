// SPDX-License-Identifier: MIT

// Many rows of x: the codes of a block of rows of W are unpacked once into a
// panel whose lanes are those rows, so that the sums of a group need no
// addition across lanes, and multiplied by a block of rows of x.

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/fixed_gemm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/prefetch.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/visit_codes-inl.h"
#endif

#ifndef MLX_FLASH_KERNELS_FIXED_GEMM_BLOCKING_
#define MLX_FLASH_KERNELS_FIXED_GEMM_BLOCKING_
namespace mlx_flash::kernels {

constexpr size_t kPanelCodes = 1024;  // of each row in a panel
constexpr size_t kPanelGroups = 64;   // at most: groups of 16
constexpr size_t kPanelRowsMax = 32;  // rows of W in a panel
constexpr size_t kPanelTokens = 256;  // rows of x that share a panel

// "Plane": one 32-bit value of each row of the panel, side by side.
struct FixedScratch {
  // Row by row, before the rows become lanes.
  alignas(64) int16_t row_codes[16 * kPanelCodes];
  alignas(64) float row_scales[16 * kPanelGroups];
  alignas(64) float row_offsets[16 * kPanelGroups];
  // [pair of codes][row], [group][row].
  alignas(64) int16_t codes[kPanelRowsMax * kPanelCodes];
  alignas(64) float scales[kPanelRowsMax * kPanelGroups];
  alignas(64) float offsets[kPanelRowsMax * kPanelGroups];
  // [token][group % 8][row].
  alignas(64) float acc[kPanelTokens * kChunkGroups * kPanelRowsMax];
};

}  // namespace mlx_flash::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

void fixed_gemm(const WeightRows&,
                size_t,
                size_t,
                const FixedRows&,
                float*,
                size_t,
                FixedScratch*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// kN rows of W in a vector (lanes-inl.h), two vectors in a panel.
constexpr size_t kVectors = 2;
constexpr size_t kPanelRows = kVectors * kN;
// Rows of x in a tile: two accumulators for each, within 32 or 16 registers.
constexpr size_t kTileTokens = kN == 8 ? 4 : 12;

using VS = hn::Vec<hn::Repartition<int16_t, DI> >;

HWY_INLINE VS broadcast_pair(const int16_t* p) {
  const auto both = load_as<int32_t>(reinterpret_cast<const uint8_t*>(p));
  return hn::BitCast(hn::Repartition<int16_t, DI>(), hn::Set(DI(), both));
}

// [kN rows][n] 32-bit values, rows `stride` apart, to [n][rows of the panel].
// REQUIRES: n is a multiple of 8, or of 4 with vectors of 128 bits.
void transpose(const int32_t* from, size_t stride, size_t n, int32_t* to);

#if HWY_MAX_BYTES == 64
void transpose(const int32_t* from, size_t stride, size_t n, int32_t* to) {
  // Eight columns at a time: rows i and i + 8 share a vector.
  const hn::Half<DI> dh;
  const hn::Repartition<int64_t, DI> d64;
  for (size_t k = 0; k < n; k += 8) {
    VI v[8];
    for (size_t i = 0; i < 8; ++i) {
      v[i] = hn::Combine(DI(),
                         hn::LoadU(dh, from + (i + 8) * stride + k),
                         hn::LoadU(dh, from + i * stride + k));
    }
    VI w[8];
    for (size_t i = 0; i < 8; i += 4) {
      const auto ab_low = hn::InterleaveLower(DI(), v[i], v[i + 1]);
      const auto ab_high = hn::InterleaveUpper(DI(), v[i], v[i + 1]);
      const auto cd_low = hn::InterleaveLower(DI(), v[i + 2], v[i + 3]);
      const auto cd_high = hn::InterleaveUpper(DI(), v[i + 2], v[i + 3]);
      const auto wide = [&](VI a)
                            FLASH_INLINE_LAMBDA { return hn::BitCast(d64, a); };
      w[i] = hn::BitCast(DI(),
                         hn::InterleaveLower(d64, wide(ab_low), wide(cd_low)));
      w[i + 1] = hn::BitCast(
          DI(), hn::InterleaveUpper(d64, wide(ab_low), wide(cd_low)));
      w[i + 2] = hn::BitCast(
          DI(), hn::InterleaveLower(d64, wide(ab_high), wide(cd_high)));
      w[i + 3] = hn::BitCast(
          DI(), hn::InterleaveUpper(d64, wide(ab_high), wide(cd_high)));
    }
    // w[j]: blocks (rows 0-3, col j), (0-3, j + 4), (8-11, j), (8-11, j + 4);
    // w[4 + j] the same of rows 4-7 and 12-15.
    for (size_t j = 0; j < 4; ++j) {
      const __m512i a = w[j].raw;
      const __m512i b = w[4 + j].raw;
      const __m512i low = _mm512_shuffle_i32x4(a, b, 0x88);   // a0 a2 b0 b2
      const __m512i high = _mm512_shuffle_i32x4(a, b, 0xDD);  // a1 a3 b1 b3
      const VI first{_mm512_shuffle_i32x4(low, low, 0xD8)};   // a0 b0 a2 b2
      const VI second{_mm512_shuffle_i32x4(high, high, 0xD8)};
      hn::Store(first, DI(), to + (k + j) * kPanelRows);
      hn::Store(second, DI(), to + (k + j + 4) * kPanelRows);
    }
  }
}
#else
void transpose(const int32_t* from, size_t stride, size_t n, int32_t* to) {
  // Four columns at a time, four rows in a block of 128 bits.
  const hn::Full128<int32_t> d;
  const hn::Full128<int64_t> d64;
  for (size_t k = 0; k < n; k += 4) {
    for (size_t r = 0; r < kN; r += 4) {
      const auto row = [&](size_t i) FLASH_INLINE_LAMBDA {
        return hn::LoadU(d, from + (r + i) * stride + k);
      };
      const auto wide = [&](hn::Vec<decltype(d)> a)
                            FLASH_INLINE_LAMBDA { return hn::BitCast(d64, a); };
      const auto ab_low = wide(hn::InterleaveLower(d, row(0), row(1)));
      const auto ab_high = wide(hn::InterleaveUpper(d, row(0), row(1)));
      const auto cd_low = wide(hn::InterleaveLower(d, row(2), row(3)));
      const auto cd_high = wide(hn::InterleaveUpper(d, row(2), row(3)));
      const auto put = [&](size_t j,
                           hn::Vec<decltype(d64)> v) FLASH_INLINE_LAMBDA {
        hn::Store(hn::BitCast(d, v), d, to + (k + j) * kPanelRows + r);
      };
      put(0, hn::InterleaveLower(d64, ab_low, cd_low));
      put(1, hn::InterleaveUpper(d64, ab_low, cd_low));
      put(2, hn::InterleaveLower(d64, ab_high, cd_high));
      put(3, hn::InterleaveUpper(d64, ab_high, cd_high));
    }
  }
}
#endif

// Chunk c of row r of W, as row i of the scratch's row by row part; `at`: its
// first group there.
template <class Codes>
HWY_INLINE void unpack_chunk(const Codes& row,
                             size_t c,
                             size_t n,
                             size_t i,
                             size_t at,
                             FixedScratch* scratch) {
  F8 scale;
  F8 offset = set_f8(0.0f);
  row.scales(c, n, &scale, &offset);
  store_f8(scale, scratch->row_scales + i * kPanelGroups + at);
  store_f8(offset, scratch->row_offsets + i * kPanelGroups + at);
  const size_t group = row.group_size();
  const uint8_t* chunk = opaque(row.chunk(c));
  int16_t* out = scratch->row_codes + i * kPanelCodes + at * group;
  const auto unpack = [&](auto q) FLASH_INLINE_LAMBDA {
    if (q >= n) return;
    Codes::template codes<q>(
        chunk, c, [&](size_t k, const S16& v) FLASH_INLINE_LAMBDA {
          store_s16(v, out + q * group + k);
        });
  };
  unpack(Part<0>());
  unpack(Part<1>());
  unpack(Part<2>());
  unpack(Part<3>());
  unpack(Part<4>());
  unpack(Part<5>());
  unpack(Part<6>());
  unpack(Part<7>());
}

// Groups [g_begin, g_end) of rows [r, r + kPanelRows), the last one again for
// those from row_end on. Codes of groups past the row's are never multiplied.
template <class Codes>
void fill_panel(const WeightRows& w,
                size_t r,
                size_t row_end,
                size_t g_begin,
                size_t g_end,
                FixedScratch* scratch) {
  const size_t group = scale_group(w.format);
  const size_t groups = w.cols / group;
  const RowPrefetch prefetch(w, kChunkGroups * group, kPanelRows);
  for (size_t v = 0; v < kVectors; ++v) {
    for (size_t i = 0; i < kN; ++i) {
      const Codes row(w, std::min(r + v * kN + i, row_end - 1));
      for (size_t g = g_begin; g < g_end; g += kChunkGroups) {
        prefetch.step(r + v * kN + i, g / kChunkGroups);
        unpack_chunk(row,
                     g / kChunkGroups,
                     std::min(kChunkGroups, groups - g),
                     i,
                     g - g_begin,
                     scratch);
      }
    }
    const size_t used = std::min(g_end, groups) - g_begin;
    transpose(reinterpret_cast<const int32_t*>(scratch->row_codes),
              kPanelCodes / 2,
              used * group / 2,
              reinterpret_cast<int32_t*>(scratch->codes) + v * kN);
    transpose(reinterpret_cast<const int32_t*>(scratch->row_scales),
              kPanelGroups,
              g_end - g_begin,
              reinterpret_cast<int32_t*>(scratch->scales) + v * kN);
    transpose(reinterpret_cast<const int32_t*>(scratch->row_offsets),
              kPanelGroups,
              g_end - g_begin,
              reinterpret_cast<int32_t*>(scratch->offsets) + v * kN);
  }
}

// fn(Part<i>()) for each i < kCount: accumulators indexed by a loop's variable
// would live in memory.
template <size_t kCount, class Fn>
HWY_INLINE void unroll(const Fn& fn) {
  [&]<size_t... kI>(std::index_sequence<kI...>) FLASH_INLINE_LAMBDA {
    (fn(Part<kI>()), ...);
  }
  (std::make_index_sequence<kCount>());
}

// The integer sums of one group for kT rows of x, `stride` apart.
template <size_t kT>
HWY_INLINE void sum_group(const int16_t* codes,
                          size_t group,
                          const int16_t* x,
                          size_t stride,
                          VI (&sum)[kT][kVectors],
                          VI (&high)[kT][kVectors]) {
  const hn::Repartition<int16_t, DI> d16;
  // Three rows of x for each pointer: twelve pointers are too many.
  constexpr size_t kPointers = (kT + 2) / 3;
  const int16_t* base[kPointers];
  for (size_t i = 0; i < kPointers; ++i) base[i] = x + 3 * i * stride;
  for (size_t k = 0; k < group; k += 2) {
    VS w[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      w[v] = hn::Load(d16, codes + k * kPanelRows + v * 2 * kN);
    }
    unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
      const VS pair = broadcast_pair(base[i / 3] + i % 3 * stride);
      for (size_t v = 0; v < kVectors; ++v) {
        sum[i][v] = dot_pairs(DI(), w[v], pair, sum[i][v], high[i][v]);
      }
    });
    for (size_t i = 0; i < kPointers; ++i) {
      base[i] += 2;
      asm("" : "+r"(base[i]));
    }
  }
}

// One group of the panel for kT rows of x from row t on: adds to `acc`
// ([token][group % 8][row], at the group's place for the first token).
template <size_t kT, bool kOffset, int kZero>
HWY_INLINE void multiply_group(const int16_t* codes,
                               const float* scales,
                               const float* offsets,
                               size_t group,
                               const FixedRows& x,
                               size_t t,
                               size_t g,
                               float* acc) {
  VI sum[kT][kVectors];
  VI high[kT][kVectors];
  unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
    for (size_t v = 0; v < kVectors; ++v) {
      sum[i][v] = high[i][v] = hn::Zero(DI());
    }
  });
  sum_group<kT>(codes,
                group,
                x.layout.values(x.rows, t) + g * group,
                x.layout.row_bytes() / sizeof(int16_t),
                sum,
                high);
  VF scale[kVectors];
  VF offset[kVectors];
  for (size_t v = 0; v < kVectors; ++v) {
    scale[v] = hn::Load(DF(), scales + v * kN);
    if constexpr (kOffset) offset[v] = hn::Load(DF(), offsets + v * kN);
  }
  unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
    const VF s = hn::Set(DF(), x.layout.scales(x.rows, t + i)[g]);
    VF offset_factor = s;
    if constexpr (kOffset) {
      offset_factor = hn::Set(DF(), x.layout.sums(x.rows, t + i)[g]);
    }
    for (size_t v = 0; v < kVectors; ++v) {
      VI total = hn::RearrangeToOddPlusEven(sum[i][v], high[i][v]);
      if constexpr (kZero != 0) {
        total =
            hn::Sub(total, hn::Set(DI(), x.layout.zero_sums(x.rows, t + i)[g]));
      }
      float* to = acc + i * kChunkGroups * kPanelRows + v * kN;
      VF a = hn::MulAdd(
          hn::Mul(scale[v], s), hn::ConvertTo(DF(), total), hn::Load(DF(), to));
      if constexpr (kOffset) a = hn::MulAdd(offset[v], offset_factor, a);
      hn::Store(a, DF(), to);
    }
  });
}

// All groups of the panel, g_begin ..., for kT rows of x.
template <size_t kT, bool kOffset, int kZero>
void multiply_tile(const FixedScratch& panel,
                   size_t group,
                   const FixedRows& x,
                   size_t t,
                   size_t g_begin,
                   size_t g_end,
                   float* acc) {
  for (size_t g = g_begin; g < g_end; ++g) {
    const size_t i = g - g_begin;
    multiply_group<kT, kOffset, kZero>(panel.codes + i * group * kPanelRows,
                                       panel.scales + i * kPanelRows,
                                       panel.offsets + i * kPanelRows,
                                       group,
                                       x,
                                       t,
                                       g,
                                       acc + g % x.chains * kPanelRows);
  }
}

// Step 4 of the canonical arithmetic for the rows of one row of x.
void finish(const float* acc, size_t rows, float* y) {
  alignas(64) float out[kPanelRows];
  for (size_t v = 0; v < kPanelRows; v += kN) {
    VF a[kChunkGroups];
    for (size_t i = 0; i < kChunkGroups; ++i) {
      a[i] = hn::Load(DF(), acc + i * kPanelRows + v);
    }
    for (size_t width = kChunkGroups / 2; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) a[i] = hn::Add(a[i], a[i + width]);
    }
    hn::Store(a[0], DF(), out + v);
  }
  std::memcpy(y, out, rows * sizeof(float));
}

using TileFn = void (*)(const FixedScratch&,
                        size_t,
                        const FixedRows&,
                        size_t,
                        size_t,
                        size_t,
                        float*);

template <size_t kT, bool kOffset, int kZero>
constexpr TileFn tile_or_null() {
  if constexpr (kT > kTileTokens) {
    return nullptr;
  } else {
    return &multiply_tile<kT, kOffset, kZero>;
  }
}

// By rows of x in the tile, less one.
template <bool kOffset, int kZero>
constexpr TileFn kTiles[12] = {tile_or_null<1, kOffset, kZero>(),
                               tile_or_null<2, kOffset, kZero>(),
                               tile_or_null<3, kOffset, kZero>(),
                               tile_or_null<4, kOffset, kZero>(),
                               tile_or_null<5, kOffset, kZero>(),
                               tile_or_null<6, kOffset, kZero>(),
                               tile_or_null<7, kOffset, kZero>(),
                               tile_or_null<8, kOffset, kZero>(),
                               tile_or_null<9, kOffset, kZero>(),
                               tile_or_null<10, kOffset, kZero>(),
                               tile_or_null<11, kOffset, kZero>(),
                               tile_or_null<12, kOffset, kZero>()};

// Rows [r, r + kPanelRows) or up to row_end for x's rows [t0, t0 + tokens).
template <class Codes>
void multiply_block(const WeightRows& w,
                    size_t r,
                    size_t row_end,
                    const FixedRows& x,
                    size_t t0,
                    size_t tokens,
                    float* y,
                    size_t y_stride,
                    FixedScratch* scratch) {
  constexpr size_t kTokenFloats = kChunkGroups * kPanelRows;
  const size_t group = scale_group(w.format);
  const size_t groups = w.cols / group;
  const size_t step = std::min(kPanelGroups, kPanelCodes / group);
  std::fill_n(scratch->acc, tokens * kTokenFloats, 0.0f);
  // Tiles of equal size rather than a small one at the end.
  const size_t tiles = (tokens + kTileTokens - 1) / kTileTokens;
  for (size_t g = 0; g < groups; g += step) {
    const size_t g_end = std::min(x.layout.groups(), g + step);
    fill_panel<Codes>(w, r, row_end, g, g_end, scratch);
    for (size_t i = 0; i < tiles; ++i) {
      const size_t t = tokens * i / tiles;
      const size_t n = tokens * (i + 1) / tiles - t;
      kTiles<Codes::kOffset, Codes::kZero>[n - 1](
          *scratch,
          group,
          x,
          t0 + t,
          g,
          std::min(groups, g_end),
          scratch->acc + t * kTokenFloats);
    }
  }
  const size_t rows = std::min(kPanelRows, row_end - r);
  for (size_t t = 0; t < tokens; ++t) {
    finish(scratch->acc + t * kTokenFloats, rows, y + (t0 + t) * y_stride + r);
  }
}

void fixed_gemm(const WeightRows& w,
                size_t row_begin,
                size_t row_end,
                const FixedRows& x,
                float* y,
                size_t y_stride,
                FixedScratch* scratch) {
  visit_codes(w.format, [&](auto type) HWY_ATTR {
    using Codes = typename decltype(type)::type;
    for (size_t t = 0; t < x.tokens; t += kPanelTokens) {
      const size_t tokens = std::min(kPanelTokens, x.tokens - t);
      for (size_t r = row_begin; r < row_end; r += kPanelRows) {
        multiply_block<Codes>(
            w, r, row_end, x, t, tokens, y, y_stride, scratch);
      }
    }
  });
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(fixed_gemm);

size_t fixed_gemm_scratch_bytes() {
  return sizeof(FixedScratch);
}

namespace {

void call_fixed_gemm(const WeightRows& w,
                     size_t row_begin,
                     size_t row_end,
                     const FixedRows& x,
                     float* y,
                     size_t y_stride,
                     std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(fixed_gemm)
  (w,
   row_begin,
   row_end,
   x,
   y,
   y_stride,
   reinterpret_cast<FixedScratch*>(scratch));
}

}  // namespace

FixedGemmFn fixed_gemm_fn() {
  return &call_fixed_gemm;
}

}  // namespace mlx_flash::kernels
#endif
