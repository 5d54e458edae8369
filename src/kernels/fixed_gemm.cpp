// SPDX-License-Identifier: MIT

// Many rows of x: the codes of a block of rows of W are unpacked once into a
// panel whose lanes are those rows, so that the sums of a group need no
// addition across lanes, and multiplied by a block of rows of x.
//
// Where multipliers are the bottleneck, half of the products are traded for
// additions (Winograd, "A new algorithm for inner product", 1968): of pairs
//
//   w0 q0 + w1 q1 = (q0 + w1) (q1 + w0) - q0 q1 - w0 w1
//
// and the sums of q0 q1 and w0 w1 over a group belong to a row of x or of W
// alone. All is exact modulo 2^32, and the result fits in 32 bits, so the bits
// are those of the plain sum. A quarter of the products stays plain
// (taken_in_pairs): then neither additions nor multiplications wait for the
// others.

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/fixed_gemm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/panel.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/panel-inl.h"
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
bool can_pair() {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Rows of x in a tile: two accumulators for each, within 32 or 16 registers.
constexpr size_t kTileTokens = kN == 8 ? 4 : 12;
// Paired products need more registers for what is neither.
constexpr size_t kPairedTokens = 8;

using VS = hn::Vec<hn::Repartition<int16_t, DI> >;

HWY_INLINE VS broadcast_pair(const uint8_t* p) {
  const auto both = load_as<int32_t>(p);
  return hn::BitCast(hn::Repartition<int16_t, DI>(), hn::Set(DI(), both));
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

// Places in kT rows of x, `stride` bytes apart. Three rows for each pointer:
// one for each are too many for the registers.
template <size_t kT>
class RowPointers {
 public:
  HWY_INLINE RowPointers(const std::byte* first, size_t stride)
      : stride_(stride) {
    for (size_t i = 0; i < kPointers; ++i) at_[i] = first + 3 * i * stride;
  }
  // `offset` bytes further, in row kI.
  template <size_t kI>
  HWY_INLINE const uint8_t* row(Part<kI>, size_t offset = 0) const {
    return reinterpret_cast<const uint8_t*>(at_[kI / 3] + kI % 3 * stride_ +
                                            offset);
  }
  HWY_INLINE void advance(size_t bytes) {
    for (const std::byte*& p : at_) {
      p += bytes;
      asm("" : "+r"(p));
    }
  }

 private:
  static constexpr size_t kPointers = (kT + 2) / 3;
  size_t stride_;
  const std::byte* at_[kPointers];
};

// The integer sums of one group for kT rows of x.
template <size_t kT>
HWY_INLINE void sum_group(const int16_t* codes,
                          size_t group,
                          RowPointers<kT> values,
                          VI (&sum)[kT][kVectors],
                          VI (&high)[kT][kVectors]) {
  const hn::Repartition<int16_t, DI> d16;
  for (size_t k = 0; k < group; k += 2) {
    VS w[kVectors];
    for (size_t v = 0; v < kVectors; ++v) {
      w[v] = hn::Load(d16, codes + k * kPanelRows + v * 2 * kN);
    }
    unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
      const VS pair = broadcast_pair(values.row(i));
      for (size_t v = 0; v < kVectors; ++v) {
        sum[i][v] = dot_pairs(DI(), w[v], pair, sum[i][v], high[i][v]);
      }
    });
    values.advance(4);
  }
}

// Four codes of each row of the panel, in pairs, times four values of each row
// of x, `offset` bytes behind `values`. kPair: by pairs of products.
template <size_t kT, bool kPair>
HWY_INLINE void add_four(const VS (&w0)[kVectors],
                         const VS (&w1)[kVectors],
                         const RowPointers<kT>& values,
                         size_t offset,
                         VI (&sum)[kT][kVectors]) {
  unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
    const VS q0 = broadcast_pair(values.row(i, offset));
    const VS q1 = broadcast_pair(values.row(i, offset + 4));
    unroll<kVectors>([&](auto v) FLASH_INLINE_LAMBDA {
      VI none = hn::Zero(DI());
      VI& to = sum[i][v];
      if constexpr (kPair) {
        to = dot_pairs(DI(), hn::Add(q0, w1[v]), hn::Add(q1, w0[v]), to, none);
      } else {
        to = dot_pairs(DI(), w0[v], q0, to, none);
        to = dot_pairs(DI(), w1[v], q1, to, none);
      }
    });
  });
}

// The same as sum_group by pairs of products: what `sum` began with matters.
template <size_t kT>
HWY_INLINE void sum_group_paired(const int16_t* codes,
                                 size_t group,
                                 RowPointers<kT> values,
                                 VI (&sum)[kT][kVectors]) {
  const hn::Repartition<int16_t, DI> d16;
  for (size_t k = 0; k < group; k += kPairCycle) {
    unroll<kPairCycle / 4>([&](auto u) FLASH_INLINE_LAMBDA {
      VS w0[kVectors];
      VS w1[kVectors];
      for (size_t v = 0; v < kVectors; ++v) {
        const int16_t* w = codes + (k + 4 * u) * kPanelRows + v * 2 * kN;
        w0[v] = hn::Load(d16, w);
        w1[v] = hn::Load(d16, w + 2 * kPanelRows);
      }
      add_four<kT, taken_in_pairs(4 * u)>(w0, w1, values, 8 * u, sum);
    });
    values.advance(2 * kPairCycle);
  }
}

// The same from units that turn_units left. Takes the sums of w0 w1, too.
template <size_t kT>
HWY_INLINE void sum_group_nibbles(const int16_t* units,
                                  size_t group,
                                  RowPointers<kT> values,
                                  VI (&sum)[kT][kVectors]) {
  const hn::Repartition<uint16_t, DI> d16;
  VI pairs[kVectors];
  for (VI& p : pairs) p = hn::Zero(DI());
  for (size_t k = 0; k < group; k += 32) {
    unroll<4>([&](auto c) FLASH_INLINE_LAMBDA {
      constexpr bool kPair = taken_in_pairs(4 * c);
      const int16_t* at = units + (k / 8 + c) * 2 * kPanelRows;
      VS low[2][kVectors];
      VS high[2][kVectors];
      for (size_t v = 0; v < kVectors; ++v) {
        split_nibbles(
            hn::Load(d16, reinterpret_cast<const uint16_t*>(at) + v * 2 * kN),
            [&](VS w0, VS w1) FLASH_INLINE_LAMBDA {
              low[0][v] = w0;
              low[1][v] = w1;
            },
            [&](VS w0, VS w1) FLASH_INLINE_LAMBDA {
              high[0][v] = w0;
              high[1][v] = w1;
            });
        if constexpr (kPair) {
          VI none = hn::Zero(DI());
          pairs[v] = dot_pairs(DI(), low[0][v], low[1][v], pairs[v], none);
          pairs[v] = dot_pairs(DI(), high[0][v], high[1][v], pairs[v], none);
        }
      }
      add_four<kT, kPair>(low[0], low[1], values, 8 * c, sum);
      add_four<kT, kPair>(high[0], high[1], values, 32 + 8 * c, sum);
    });
    values.advance(64);
  }
  unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
    unroll<kVectors>([&](auto v) FLASH_INLINE_LAMBDA {
      sum[i][v] = hn::Sub(sum[i][v], pairs[v]);
    });
  });
}

// How a group's products are summed.
enum class Products {
  kPlain,
  kPaired,
  kPairedNibbles,  // the panel holds turned units rather than codes
};

// Where a group of the panel begins.
struct PanelGroup {
  const int16_t* codes;
  const float* scales;
  const float* offsets;
  const int32_t* pairs;
};

HWY_INLINE VI broadcast_i32(const uint8_t* p) {
  return hn::Set(DI(), load_as<int32_t>(p));
}

// The integer sums of one group for kT rows of x; `numbers`: its scale in each.
template <size_t kT, int kZero, Products kProducts>
HWY_INLINE void group_totals(const PanelGroup& panel,
                             size_t group,
                             const RowPointers<kT>& values,
                             const RowPointers<kT>& numbers,
                             VI (&total)[kT][kVectors]) {
  if constexpr (kProducts == Products::kPaired) {
    unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
      const VI start = broadcast_i32(numbers.row(i, FixedLayout::kPairStartAt));
      unroll<kVectors>([&](auto v) FLASH_INLINE_LAMBDA {
        total[i][v] = hn::Sub(start, hn::Load(DI(), panel.pairs + v * kN));
      });
    });
    sum_group_paired<kT>(panel.codes, group, values, total);
  } else if constexpr (kProducts == Products::kPairedNibbles) {
    unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
      const VI start = broadcast_i32(numbers.row(i, FixedLayout::kPairStartAt));
      for (VI& to : total[i]) to = start;
    });
    sum_group_nibbles<kT>(panel.codes, group, values, total);
  } else {
    VI high[kT][kVectors];
    unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
      unroll<kVectors>([&](auto v) FLASH_INLINE_LAMBDA {
        total[i][v] = high[i][v] = hn::Zero(DI());
      });
    });
    sum_group<kT>(panel.codes, group, values, total, high);
    unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
      unroll<kVectors>([&](auto v) FLASH_INLINE_LAMBDA {
        total[i][v] = hn::RearrangeToOddPlusEven(total[i][v], high[i][v]);
        if constexpr (kZero != 0) {
          total[i][v] =
              hn::Sub(total[i][v],
                      broadcast_i32(numbers.row(i, FixedLayout::kZeroSumAt)));
        }
      });
    });
  }
}

// One group of the panel for kT rows of x: adds to `acc` ([token][group %
// 8][row], at the group's place for the first token).
template <size_t kT, bool kOffset, int kZero, Products kProducts>
HWY_INLINE void multiply_group(const PanelGroup& panel,
                               size_t group,
                               const RowPointers<kT>& values,
                               const RowPointers<kT>& numbers,
                               float* acc) {
  VI total[kT][kVectors];
  group_totals<kT, kZero, kProducts>(panel, group, values, numbers, total);
  VF scale[kVectors];
  VF offset[kVectors];
  for (size_t v = 0; v < kVectors; ++v) {
    scale[v] = hn::Load(DF(), panel.scales + v * kN);
    if constexpr (kOffset) offset[v] = hn::Load(DF(), panel.offsets + v * kN);
  }
  unroll<kT>([&](auto i) FLASH_INLINE_LAMBDA {
    const VF s = broadcast_f32(numbers.row(i));
    VF offset_factor = s;
    if constexpr (kOffset) {
      offset_factor = broadcast_f32(numbers.row(i, FixedLayout::kSumAt));
    }
    unroll<kVectors>([&](auto v) FLASH_INLINE_LAMBDA {
      float* to = acc + i * kChunkGroups * kPanelRows + v * kN;
      VF a = hn::MulAdd(hn::Mul(scale[v], s),
                        hn::ConvertTo(DF(), total[i][v]),
                        hn::Load(DF(), to));
      if constexpr (kOffset) a = hn::MulAdd(offset[v], offset_factor, a);
      hn::Store(a, DF(), to);
    });
  });
}

// Groups of a panel: those whose codes it holds, [group, group_end) of the row,
// and from which on it holds scales.
struct PanelGroups {
  size_t group;
  size_t group_end;
  size_t first_scale;
};

// All groups whose codes the panel holds, for kT rows of x from row t on.
template <size_t kT, bool kOffset, int kZero, Products kProducts>
void multiply_tile(const FixedScratch& panel,
                   const PanelGroups& groups,
                   const FixedRows& x,
                   size_t t,
                   float* acc,
                   SpreadPrefetch* ahead) {
  const size_t group = x.layout.group_size();
  const size_t stride = x.layout.row_bytes();
  const std::byte* row = x.rows + t * stride;
  // Four bytes of a turned unit stand for eight codes, not for two.
  constexpr size_t kPacked = kProducts == Products::kPairedNibbles ? 4 : 1;
  for (size_t g = groups.group; g < groups.group_end; ++g) {
    const size_t i = g - groups.group;
    const size_t scale = (g - groups.first_scale) * kPanelRows;
    const PanelGroup at = {panel.codes + i * group * kPanelRows / kPacked,
                           panel.scales + scale,
                           panel.offsets + scale,
                           panel.pairs + i * kPanelRows};
    const RowPointers<kT> values(row + g * group * sizeof(int16_t), stride);
    const RowPointers<kT> numbers(row + x.layout.number_at(g), stride);
    const size_t chain =
        x.chains == kChunkGroups ? g % kChunkGroups : g % x.chains;
    multiply_group<kT, kOffset, kZero, kProducts>(
        at, group, values, numbers, acc + chain * kPanelRows);
    ahead->tick();
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
                        const PanelGroups&,
                        const FixedRows&,
                        size_t,
                        float*,
                        SpreadPrefetch*);

template <Products kProducts>
constexpr size_t kTokens =
    kProducts == Products::kPlain ? kTileTokens : kPairedTokens;

template <size_t kT, bool kOffset, int kZero, Products kProducts>
constexpr TileFn tile_or_null() {
  if constexpr (kT > kTokens<kProducts>) {
    return nullptr;
  } else {
    return &multiply_tile<kT, kOffset, kZero, kProducts>;
  }
}

// By rows of x in the tile, less one.
template <bool kOffset, int kZero, Products kProducts>
constexpr TileFn kTiles[12] = {tile_or_null<1, kOffset, kZero, kProducts>(),
                               tile_or_null<2, kOffset, kZero, kProducts>(),
                               tile_or_null<3, kOffset, kZero, kProducts>(),
                               tile_or_null<4, kOffset, kZero, kProducts>(),
                               tile_or_null<5, kOffset, kZero, kProducts>(),
                               tile_or_null<6, kOffset, kZero, kProducts>(),
                               tile_or_null<7, kOffset, kZero, kProducts>(),
                               tile_or_null<8, kOffset, kZero, kProducts>(),
                               tile_or_null<9, kOffset, kZero, kProducts>(),
                               tile_or_null<10, kOffset, kZero, kProducts>(),
                               tile_or_null<11, kOffset, kZero, kProducts>(),
                               tile_or_null<12, kOffset, kZero, kProducts>()};

// Rows [r, r + kPanelRows) or up to row_end for x's rows [t0, t0 + tokens).
template <class Codes, Products kProducts>
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
  const size_t code_step = kUnitOf<Codes> == UnitCodes::kNone
                               ? step
                               : std::min(step, panel_codes(tokens) / group);
  const RowBytes bytes = row_bytes(w.format, w.cols);
  std::fill_n(scratch->acc, tokens * kTokenFloats, 0.0f);
  // Tiles of equal size rather than a small one at the end.
  constexpr size_t kMost = kTokens<kProducts>;
  // What the zero adds is in the numbers that paired sums start with.
  constexpr int kZero = kProducts == Products::kPlain ? Codes::kZero : 0;
  const size_t tiles = (tokens + kMost - 1) / kMost;
  const auto multiply = [&](const PanelGroups& at) HWY_ATTR {
    SpreadPrefetch ahead(w,
                         r + kPanelRows,
                         kPanelRows,
                         at.group * group,
                         at.group_end * group,
                         tiles * (at.group_end - at.group));
    for (size_t i = 0; i < tiles; ++i) {
      const size_t t = tokens * i / tiles;
      const size_t n = tokens * (i + 1) / tiles - t;
      kTiles<Codes::kOffset, kZero, kProducts>[n - 1](
          *scratch, at, x, t0 + t, scratch->acc + t * kTokenFloats, &ahead);
    }
  };
  for (size_t g = 0; g < groups; g += step) {
    const size_t g_end = std::min(x.layout.groups(), g + step);
    const PanelPlace place = {r, row_end, g, g_end, bytes};
    fill_scales<Codes>(w, place, scratch);
    for (size_t i = g; i < std::min(groups, g_end); i += code_step) {
      const size_t i_end = std::min({groups, g_end, i + code_step});
      fill_codes<Codes, kProducts == Products::kPairedNibbles>(
          w, place, i, i_end, scratch);
      multiply({i, i_end, g});
    }
  }
  const size_t rows = std::min(kPanelRows, row_end - r);
  for (size_t t = 0; t < tokens; ++t) {
    finish(scratch->acc + t * kTokenFloats, rows, y + (t0 + t) * y_stride + r);
  }
}

template <class Codes, Products kProducts>
void multiply_all(const WeightRows& w,
                  size_t row_begin,
                  size_t row_end,
                  const FixedRows& x,
                  float* y,
                  size_t y_stride,
                  FixedScratch* scratch) {
  for (size_t t = 0; t < x.tokens; t += kPanelTokens) {
    const size_t tokens = std::min(kPanelTokens, x.tokens - t);
    for (size_t r = row_begin; r < row_end; r += kPanelRows) {
      multiply_block<Codes, kProducts>(
          w, r, row_end, x, t, tokens, y, y_stride, scratch);
    }
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
    const auto multiply = [&](auto all) HWY_ATTR {
      all(w, row_begin, row_end, x, y, y_stride, scratch);
    };
    if constexpr (kCanPair && keeps_nibbles<Codes>()) {
      // One tile: each unit is taken apart once, and nothing is written.
      if (x.paired && x.tokens <= kPairedTokens) {
        return multiply(&multiply_all<Codes, Products::kPairedNibbles>);
      }
    }
    if constexpr (kCanPair) {
      if (x.paired) return multiply(&multiply_all<Codes, Products::kPaired>);
    }
    multiply(&multiply_all<Codes, Products::kPlain>);
  });
}

bool can_pair() {
  return kCanPair;
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(fixed_gemm);
HWY_EXPORT(can_pair);

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

bool fixed_gemm_pairs() {
  return HWY_DYNAMIC_DISPATCH(can_pair)() && paired_products_pay();
}

}  // namespace mlx_flash::kernels
#endif
