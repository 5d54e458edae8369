// SPDX-License-Identifier: MIT

// Fills a panel: rows of W as they lie in the file, to codes and scales whose
// lanes are the rows.

#if defined(MLX_FLASH_KERNELS_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_PANEL_INL_H_
#undef MLX_FLASH_KERNELS_PANEL_INL_H_
#else
#define MLX_FLASH_KERNELS_PANEL_INL_H_
#endif

#include <algorithm>

#include "kernels/panel.h"
#include "kernels/prefetch.h"
#include "kernels/visit_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

// kN rows of W in a vector (lanes-inl.h), two vectors in a panel.
constexpr size_t kVectors = 2;
constexpr size_t kPanelRows = kVectors * kN;
// Whether products can be taken in pairs (fixed_gemm.cpp).
constexpr bool kCanPair = FLASH_DOT_INSTRUCTION;

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

// The first n groups of chunk c of a row.
template <class Codes>
HWY_INLINE void unpack_chunk(const uint8_t* chunk,
                             size_t c,
                             size_t n,
                             int16_t* out) {
  const auto unpack = [&](auto q) FLASH_INLINE_LAMBDA {
    if (q >= n) return;
    Codes::template codes<q>(
        chunk, c, [&](size_t k, const S16& v) FLASH_INLINE_LAMBDA {
          store_s16(v, out + q * Codes::group_size() + k);
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

// ---- Bytes become lanes before codes are taken out of them ----

// Blocks of 16 bytes `at` bytes behind p[i], p[i + 4], ... side by side.
HWY_INLINE VI load_blocks(const uint8_t* const* p, size_t i, size_t at) {
  const hn::Full128<int32_t> d;
  const auto block = [&](size_t row) FLASH_INLINE_LAMBDA {
    return hn::LoadU(d, reinterpret_cast<const int32_t*>(p[row] + at));
  };
#if HWY_MAX_BYTES == 64
  const hn::Half<DI> dh;
  return hn::Combine(DI(),
                     hn::Combine(dh, block(i + 12), block(i + 8)),
                     hn::Combine(dh, block(i + 4), block(i)));
#elif HWY_MAX_BYTES == 32
  return hn::Combine(DI(), block(i + 4), block(i));
#else
  return block(i);
#endif
}

// put(Part<c>(), lanes) for c = 0 ... 3: of the blocks `at` bytes behind p[i],
// bytes 4c ... 4c + 3 of each row.
template <class Put>
HWY_INLINE void turn_blocks(const uint8_t* const* p,
                            size_t at,
                            const Put& put) {
  // Sixteen pointers belong in memory: the compiler would find worse places.
  asm("" : "+r"(p));
  const hn::Repartition<int64_t, DI> d64;
  const auto wide = [&](VI v)
                        FLASH_INLINE_LAMBDA { return hn::BitCast(d64, v); };
  const VI v0 = load_blocks(p, 0, at);
  const VI v1 = load_blocks(p, 1, at);
  const VI v2 = load_blocks(p, 2, at);
  const VI v3 = load_blocks(p, 3, at);
  const auto ab_low = wide(hn::InterleaveLower(DI(), v0, v1));
  const auto ab_high = wide(hn::InterleaveUpper(DI(), v0, v1));
  const auto cd_low = wide(hn::InterleaveLower(DI(), v2, v3));
  const auto cd_high = wide(hn::InterleaveUpper(DI(), v2, v3));
  const auto lanes = [](auto v)
                         FLASH_INLINE_LAMBDA { return hn::BitCast(DI(), v); };
  put(Part<0>(), lanes(hn::InterleaveLower(d64, ab_low, cd_low)));
  put(Part<1>(), lanes(hn::InterleaveUpper(d64, ab_low, cd_low)));
  put(Part<2>(), lanes(hn::InterleaveLower(d64, ab_high, cd_high)));
  put(Part<3>(), lanes(hn::InterleaveUpper(d64, ab_high, cd_high)));
}

// Four bytes of each row so that those that end up in one pair of codes, two
// apart, are neighbours.
HWY_INLINE hn::Vec<hn::Repartition<uint16_t, DI> > order_column(VI bytes) {
  alignas(16) static constexpr uint8_t kOrder[16] = {
      0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
  const hn::Repartition<uint8_t, DI> d8;
  return hn::BitCast(
      hn::Repartition<uint16_t, DI>(),
      hn::TableLookupBytes(hn::BitCast(d8, bytes), hn::LoadDup128(d8, kOrder)));
}

// What order_column made of four bytes with two codes each, as pairs: put(first
// two bytes, others) for the low halves and for the high ones.
template <class PutLow, class PutHigh>
HWY_INLINE void split_nibbles(hn::Vec<hn::Repartition<uint16_t, DI> > v,
                              const PutLow& put_low,
                              const PutHigh& put_high) {
  const hn::Repartition<uint16_t, DI> du;
  const hn::Repartition<int16_t, DI> ds;
  const auto mask = hn::Set(du, uint16_t{15});
  put_low(hn::BitCast(ds, hn::And(v, mask)),
          hn::BitCast(ds, hn::And(hn::ShiftRight<8>(v), mask)));
  put_high(hn::BitCast(ds, hn::And(hn::ShiftRight<4>(v), mask)),
           hn::BitCast(ds, hn::ShiftRight<12>(v)));
}

// Codes of four bytes of each row; as 16-bit pairs, those of the first two
// bytes to low (and high), of the others one pair further. Adds the products of
// the two pairs to the sums, if kSum.
template <UnitCodes kUnit, bool kSum>
HWY_INLINE void put_column(
    VI bytes, int16_t* low, int16_t* high, VI& low_sum, VI& high_sum) {
  const hn::Repartition<uint16_t, DI> du;
  const hn::Repartition<int16_t, DI> ds;
  const auto v = order_column(bytes);
  const auto put = [&](auto w0, auto w1, int16_t* to, VI& sum)
                       FLASH_INLINE_LAMBDA {
                         hn::Store(w0, ds, to);
                         hn::Store(w1, ds, to + 2 * kPanelRows);
                         if constexpr (kSum) {
                           VI none = hn::Zero(DI());
                           sum = dot_pairs(DI(), w0, w1, sum, none);
                         }
                       };
  if constexpr (kUnit == UnitCodes::kNibbles) {
    split_nibbles(
        v,
        [&](auto w0, auto w1)
            FLASH_INLINE_LAMBDA { put(w0, w1, low, low_sum); },
        [&](auto w0, auto w1)
            FLASH_INLINE_LAMBDA { put(w0, w1, high, high_sum); });
  } else if constexpr (kUnit == UnitCodes::kBytes) {
    put(hn::BitCast(ds, hn::And(v, hn::Set(du, uint16_t{255}))),
        hn::BitCast(ds, hn::ShiftRight<8>(v)),
        low,
        low_sum);
  } else {
    const auto s = hn::BitCast(ds, v);
    put(hn::ShiftRight<8>(hn::ShiftLeft<8>(s)),
        hn::ShiftRight<8>(s),
        low,
        low_sum);
  }
}

// Codes of groups [q, q_end) of a chunk that begins at chunks[i] in row i.
// `codes` and `pairs`: the panel's places of group q.
template <class Codes>
HWY_INLINE void unpack_units(const uint8_t* const* chunks,
                             size_t q,
                             size_t q_end,
                             int16_t* codes,
                             int32_t* pairs) {
  constexpr size_t kGroup = Codes::group_size();
  constexpr bool kNibbles = kUnitOf<Codes> == UnitCodes::kNibbles;
  constexpr size_t kUnitCodes = kNibbles ? 32 : 16;
  const size_t first = q * kGroup;
  const auto add = [&](size_t k, VI sum) FLASH_INLINE_LAMBDA {
    int32_t* to = pairs + (k - first) / kGroup * kPanelRows;
    hn::Store(hn::Add(hn::Load(DI(), to), sum), DI(), to);
  };
  for (size_t g = 0; kCanPair && g < q_end - q; ++g) {
    hn::Store(hn::Zero(DI()), DI(), pairs + g * kPanelRows);
  }
  for (size_t u = first / kUnitCodes; u < q_end * kGroup / kUnitCodes; ++u) {
    const size_t low = Codes::unit_low(u);
    const size_t high = Codes::unit_high(u);
    VI low_sum = hn::Zero(DI());
    VI high_sum = hn::Zero(DI());
    turn_blocks(
        chunks, Codes::unit_at(u), [&](auto c, VI bytes) FLASH_INLINE_LAMBDA {
          int16_t* to = codes + 4 * c * kPanelRows;
          put_column<kUnitOf<Codes>, kCanPair && taken_in_pairs(4 * c)>(
              bytes,
              to + (low - first) * kPanelRows,
              to + (high - first) * kPanelRows,
              low_sum,
              high_sum);
        });
    if constexpr (kCanPair) {
      // Mostly both belong to one group.
      if (low / kGroup == high / kGroup) {
        add(low, hn::Add(low_sum, high_sum));
      } else {
        add(low, low_sum);
        if constexpr (kNibbles) add(high, high_sum);
      }
    }
  }
}

// Whether units of nibbles can stay as they are until they are multiplied:
// codes of a unit are neighbours.
template <class Codes>
constexpr bool keeps_nibbles() {
  if constexpr (kUnitOf<Codes> == UnitCodes::kNibbles) {
    return Codes::unit_low(1) == 32 && Codes::unit_high(0) == 16;
  }
  return false;
}

// Units of groups [q, q_end) of a chunk, turned but not taken apart, to the
// panel's place of group q: four bytes of a row in the place of a pair of
// codes. REQUIRES: keeps_nibbles<Codes>().
template <class Codes>
HWY_INLINE void turn_units(const uint8_t* const* chunks,
                           size_t q,
                           size_t q_end,
                           int16_t* to) {
  constexpr size_t kGroup = Codes::group_size();
  for (size_t u = q * kGroup / 32; u < q_end * kGroup / 32; ++u) {
    turn_blocks(
        chunks, Codes::unit_at(u), [&](auto c, VI bytes) FLASH_INLINE_LAMBDA {
          hn::Store(order_column(bytes),
                    hn::Repartition<uint16_t, DI>(),
                    reinterpret_cast<uint16_t*>(to) + c * 2 * kPanelRows);
        });
    to += 4 * 2 * kPanelRows;
  }
}

// The sums of w0 w1, where they are taken in pairs, of the panel's first
// `groups` groups.
void sum_pairs(size_t group, size_t groups, FixedScratch* panel) {
  const hn::Repartition<int16_t, DI> d16;
  const int16_t* codes = panel->codes;
  for (size_t g = 0; g < groups; ++g) {
    VI sum[kVectors];
    VI none = hn::Zero(DI());
    for (VI& s : sum) s = hn::Zero(DI());
    for (size_t k = 0; k < group; k += 4, codes += 4 * kPanelRows) {
      if (!taken_in_pairs(k)) continue;
      for (size_t v = 0; v < kVectors; ++v) {
        const int16_t* w = codes + v * 2 * kN;
        sum[v] = dot_pairs(DI(),
                           hn::Load(d16, w),
                           hn::Load(d16, w + 2 * kPanelRows),
                           sum[v],
                           none);
      }
    }
    for (size_t v = 0; v < kVectors; ++v) {
      hn::Store(sum[v], DI(), panel->pairs + g * kPanelRows + v * kN);
    }
  }
}

// Which rows and groups a panel holds.
struct PanelPlace {
  size_t row;      // the first
  size_t row_end;  // of the matrix: its last stands again for those past it
  size_t group;    // groups [group, group_end), whole chunks
  size_t group_end;
  RowBytes bytes;  // of a row of the matrix

  size_t row_at(size_t i) const { return std::min(row + i, row_end - 1); }
  // out[i]: `first`, of the panel's first row, in its row from + i.
  void rows_from(const uint8_t* first,
                 size_t stride,
                 size_t from,
                 const uint8_t** out) const {
    for (size_t i = 0; i < kN; ++i) {
      out[i] = first + (row_at(from + i) - row) * stride;
    }
  }
};

// Eight numbers of 16 bits at p[i] in each row, as floats, to planes.
HWY_INLINE void turn_numbers(const uint8_t* const* p,
                             DType dtype,
                             float* planes) {
  turn_blocks(p, 0, [&](auto c, VI both) FLASH_INLINE_LAMBDA {
    const hn::Rebind<uint16_t, DF> d16;
    const hn::Rebind<hwy::float16_t, DF> df16;
    const VI even = hn::And(both, hn::Set(DI(), 0xFFFF));
    const VI odd =
        hn::BitCast(DI(), hn::ShiftRight<16>(hn::BitCast(DU(), both)));
    const auto widen = [&](VI bits) FLASH_INLINE_LAMBDA {
      return dtype == DType::kBF16
                 ? hn::BitCast(DF(), hn::ShiftLeft<16>(bits))
                 : hn::PromoteTo(DF(),
                                 hn::BitCast(df16, hn::DemoteTo(d16, bits)));
    };
    hn::Store(widen(even), DF(), planes + 2 * c * kPanelRows);
    hn::Store(widen(odd), DF(), planes + (2 * c + 1) * kPanelRows);
  });
}

// Scales and offsets that lie apart from the codes, by eight of a row at a
// time. REQUIRES: numbers of 16 bits, whole chunks.
template <class Codes>
void fill_split_scales(const WeightRows& w,
                       const PanelPlace& place,
                       FixedScratch* scratch) {
  const Codes first(w, place.row);
  for (size_t g = place.group; g < place.group_end; g += kChunkGroups) {
    const size_t c = g / kChunkGroups;
    for (size_t v = 0; v < kVectors; ++v) {
      const uint8_t* scales[kN];
      const uint8_t* biases[kN];
      place.rows_from(first.scales_of(c), place.bytes.scales, v * kN, scales);
      place.rows_from(first.biases_of(c), place.bytes.biases, v * kN, biases);
      const size_t to = (g - place.group) * kPanelRows + v * kN;
      turn_numbers(scales, w.format.scale_dtype, scratch->scales + to);
      turn_numbers(biases, w.format.scale_dtype, scratch->offsets + to);
    }
  }
}

// Scales and offsets.
template <class Codes>
void fill_scales(const WeightRows& w,
                 const PanelPlace& place,
                 FixedScratch* scratch) {
  constexpr size_t kGroup = Codes::group_size();
  const size_t groups = w.cols / kGroup;
  if constexpr (requires(const Codes& row) { row.scales_of(0); }) {
    if (w.format.scale_dtype != DType::kF32 && place.group_end <= groups) {
      return fill_split_scales<Codes>(w, place, scratch);
    }
  }
  const size_t count = place.group_end - place.group;
  for (size_t v = 0; v < kVectors; ++v) {
    for (size_t i = 0; i < kN; ++i) {
      const Codes row(w, place.row_at(v * kN + i));
      for (size_t g = place.group; g < place.group_end; g += kChunkGroups) {
        const size_t c = g / kChunkGroups;
        const size_t at = i * kPanelGroups + g - place.group;
        F8 scale;
        F8 offset;
        row.scales(c, std::min(kChunkGroups, groups - g), &scale, &offset);
        store_f8(scale, scratch->row_scales + at);
        if constexpr (Codes::kOffset) {
          store_f8(offset, scratch->row_offsets + at);
        }
      }
    }
    const auto turn = [&](const float* from, float* to) HWY_ATTR {
      transpose(reinterpret_cast<const int32_t*>(from),
                kPanelGroups,
                count,
                reinterpret_cast<int32_t*>(to) + v * kN);
    };
    turn(scratch->row_scales, scratch->scales);
    if constexpr (Codes::kOffset) turn(scratch->row_offsets, scratch->offsets);
  }
}

// Codes and sums of pairs of groups [g_begin, g_end) of the row, within the
// panel's, to the beginning of the scratch's planes. kNibbles: units turned and
// nothing else.
template <class Codes, bool kNibbles>
void fill_codes(const WeightRows& w,
                const PanelPlace& place,
                size_t g_begin,
                size_t g_end,
                FixedScratch* scratch) {
  constexpr size_t kGroup = Codes::group_size();
  const Codes first(w, place.row);
  for (size_t v = 0; v < kVectors; ++v) {
    int16_t* codes = scratch->codes + v * 2 * kN;
    if constexpr (kUnitOf<Codes> == UnitCodes::kNone) {
      for (size_t i = 0; i < kN; ++i) {
        const Codes row(w, place.row_at(v * kN + i));
        for (size_t g = g_begin; g < g_end; g += kChunkGroups) {
          const size_t c = g / kChunkGroups;
          unpack_chunk<Codes>(
              opaque(row.chunk(c)),
              c,
              std::min(kChunkGroups, g_end - g),
              scratch->row_codes + i * kPanelCodes + (g - g_begin) * kGroup);
        }
      }
      transpose(reinterpret_cast<const int32_t*>(scratch->row_codes),
                kPanelCodes / 2,
                (g_end - g_begin) * kGroup / 2,
                reinterpret_cast<int32_t*>(codes));
    } else {
      for (size_t g = g_begin; g < g_end;) {
        const size_t c = g / kChunkGroups;
        const size_t end = std::min(g_end, (c + 1) * kChunkGroups);
        const uint8_t* chunks[kN];
        place.rows_from(first.chunk(c), place.bytes.weight, v * kN, chunks);
        const size_t at = g - g_begin;
        const size_t q = g - c * kChunkGroups;
        const size_t q_end = end - c * kChunkGroups;
        if constexpr (kNibbles) {
          turn_units<Codes>(
              chunks, q, q_end, codes + at * kGroup * kPanelRows / 4);
        } else {
          unpack_units<Codes>(chunks,
                              q,
                              q_end,
                              codes + at * kGroup * kPanelRows,
                              scratch->pairs + at * kPanelRows + v * kN);
        }
        g = end;
      }
    }
  }
  if constexpr (kUnitOf<Codes> == UnitCodes::kNone && kCanPair) {
    sum_pairs(kGroup, g_end - g_begin, scratch);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_PANEL_INL_H_
