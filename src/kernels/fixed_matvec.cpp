// SPDX-License-Identifier: MIT

// A few rows of x: codes are unpacked in registers and used at once. Eight
// groups of a row at a time, so that their sums fill a vector.

#include <algorithm>

#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/fixed_matvec.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/prefetch.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/visit_codes-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

void fixed_matvec(
    const WeightRows&, size_t, size_t, const FixedRows&, float*, size_t) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Rows of W side by side, for the sake of the x they share.
constexpr size_t kRows = 4;

// The sums of eight groups of chunk c for kT rows of x.
template <class Codes, size_t kT>
class ChunkSums {
 public:
  // All eight groups of chunk c. values[t]: those of the chunk in row t of x.
  HWY_INLINE void add_all(const uint8_t* chunk,
                          size_t c,
                          const int16_t* const* values) {
    group<0>(chunk, c, values, 0);
    group<1>(chunk, c, values, 1);
    group<2>(chunk, c, values, 2);
    group<3>(chunk, c, values, 3);
    group<4>(chunk, c, values, 4);
    group<5>(chunk, c, values, 5);
    group<6>(chunk, c, values, 6);
    group<7>(chunk, c, values, 7);
  }

  // The first n of them.
  HWY_INLINE void add_first(const uint8_t* chunk,
                            size_t c,
                            size_t n,
                            const int16_t* const* values) {
    for (size_t q = 0; q < kChunkGroups; ++q) {
      if (q < n) {
        group<0>(chunk + q * Codes::kGroupBytes, c, values, q);
      } else {
        for (size_t t = 0; t < kT; ++t) sum_[t][q] = zero_i8();
      }
    }
  }

  HWY_INLINE I8 result(size_t t) const { return sum_each(sum_[t]); }

 private:
  // Group kQ of the chunk at `chunk`, as sum number q.
  template <size_t kQ>
  HWY_INLINE void group(const uint8_t* chunk,
                        size_t c,
                        const int16_t* const* values,
                        size_t q) {
    // Where the compiler sees which sixteen are a group's first.
    constexpr bool kShort = Codes::group_size() <= 32;
    for (size_t t = 0; t < kT && !kShort; ++t) sum_[t][q] = zero_i8();
    const size_t at = q * Codes::group_size();
    Codes::template codes<kQ>(
        chunk, c, [&](size_t k, const S16& codes) FLASH_INLINE_LAMBDA {
          for (size_t t = 0; t < kT; ++t) {
            if (kShort && k == 0) {
              sum_[t][q] = first_dot(codes, values[t] + at);
            } else {
              dot(codes, values[t] + at + k, &sum_[t][q]);
            }
          }
        });
  }

  I8 sum_[kT][kChunkGroups];
};

// Chunk c of kT rows of x.
template <size_t kT>
struct ChunkOfX {
  ChunkOfX(const FixedRows& x, size_t t0, size_t c) {
    const size_t g = c * kChunkGroups;
    for (size_t t = 0; t < kT; ++t) {
      values[t] = x.layout.values(x.rows, t0 + t) + g * x.layout.group_size();
      scales[t] = x.layout.scale(x.rows, t0 + t, g);
    }
  }
  const float* sums(size_t t) const {
    return scales[t] + FixedLayout::kSumAt / sizeof(float);
  }
  const int32_t* zero_sums(size_t t) const {
    return reinterpret_cast<const int32_t*>(
        scales[t] + FixedLayout::kZeroSumAt / sizeof(float));
  }

  const int16_t* values[kT];
  const float* scales[kT];  // the other numbers lie behind them
};

// Adds chunk c of a row of W, of n groups, times rows of x.
template <class Codes, size_t kT, bool kFull>
HWY_INLINE void add_chunk(
    const Codes& row, size_t c, size_t n, const ChunkOfX<kT>& x, F8* acc) {
  // Hidden for each row, as in opaque(), or addresses would be kept for all.
  const int16_t* values[kT];
  for (size_t t = 0; t < kT; ++t) {
    values[t] = x.values[t];
    asm("" : "+r"(values[t]));
  }
  F8 scale;
  F8 offset;
  row.scales(c, n, &scale, &offset);
  ChunkSums<Codes, kT> chunk;
  if constexpr (kFull) {
    chunk.add_all(opaque(row.chunk(c)), c, values);
  } else {
    chunk.add_first(row.chunk(c), c, n, values);
  }
  for (size_t t = 0; t < kT; ++t) {
    I8 sum = chunk.result(t);
    if constexpr (Codes::kZero != 0) sum = subtract(sum, x.zero_sums(t));
    const F8 product = mul(scale, load_f8(x.scales[t]));
    acc[t] = mul_add(product, to_f8(sum), acc[t]);
    if constexpr (Codes::kOffset) {
      acc[t] = mul_add(offset, load_f8(x.sums(t)), acc[t]);
    }
  }
}

// fn(Part<i>()) for the rows side by side. Unrolled for one row of x and one
// pointer for each row of W, so that accumulators stay in registers; for more
// there are too many of them.
template <class Codes, size_t kT, class Fn>
HWY_INLINE void for_rows(const Fn& fn) {
  static_assert(kRows == 4);
  if constexpr (kT == 1 && sizeof(Codes) == sizeof(void*)) {
    fn(Part<0>());
    fn(Part<1>());
    fn(Part<2>());
    fn(Part<3>());
  } else {
    for (size_t i = 0; i < kRows; ++i) fn(i);
  }
}

// kT rows of x from row t0 on.
template <class Codes, size_t kT>
void multiply(const WeightRows& w,
              size_t row_begin,
              size_t row_end,
              const FixedRows& x,
              size_t t0,
              float* y,
              size_t y_stride) {
  constexpr size_t kChunk = kChunkGroups * Codes::group_size();
  const size_t whole = w.cols / kChunk;
  const size_t rest = w.cols % kChunk / Codes::group_size();
  const RowPrefetch prefetch(w, kChunk, kRows);
  for (size_t r = row_begin; r < row_end; r += kRows) {
    // Past the end the last row is computed again and thrown away.
    const auto at = [&](size_t i) { return std::min(r + i, row_end - 1); };
    const Codes rows[kRows] = {
        Codes(w, at(0)), Codes(w, at(1)), Codes(w, at(2)), Codes(w, at(3))};
    F8 acc[kRows][kT];
    for_rows<Codes, kT>([&](auto i) FLASH_INLINE_LAMBDA {
      for (F8& a : acc[i]) a = set_f8(0.0f);
    });
    for (size_t c = 0; c < whole; ++c) {
      const ChunkOfX<kT> chunk(x, t0, c);
      for_rows<Codes, kT>([&](auto i) FLASH_INLINE_LAMBDA {
        if constexpr (Codes::kGroupBytes != 0) {
          prefetch.ahead_of<kChunkGroups * Codes::kGroupBytes>(
              rows[i].chunk(c));
        } else {
          prefetch.step(r + i, c);
        }
        add_chunk<Codes, kT, true>(rows[i], c, kChunkGroups, chunk, acc[i]);
      });
    }
    if constexpr (Codes::kGroupBytes != 0) {
      const ChunkOfX<kT> chunk(x, t0, whole);
      for (size_t i = 0; i < kRows && rest > 0; ++i) {
        add_chunk<Codes, kT, false>(rows[i], whole, rest, chunk, acc[i]);
      }
    }
    for (size_t i = 0; i < std::min(kRows, row_end - r); ++i) {
      for (size_t t = 0; t < kT; ++t) {
        y[(t0 + t) * y_stride + r + i] = reduce8(acc[i][t]);
      }
    }
  }
}

void fixed_matvec(const WeightRows& w,
                  size_t row_begin,
                  size_t row_end,
                  const FixedRows& x,
                  float* y,
                  size_t y_stride) {
  visit_codes(w.format, [&](auto type) HWY_ATTR {
    using Codes = typename decltype(type)::type;
    size_t t = 0;
    for (; t + 4 <= x.tokens; t += 4) {
      multiply<Codes, 4>(w, row_begin, row_end, x, t, y, y_stride);
    }
    for (; t + 2 <= x.tokens; t += 2) {
      multiply<Codes, 2>(w, row_begin, row_end, x, t, y, y_stride);
    }
    for (; t < x.tokens; ++t) {
      multiply<Codes, 1>(w, row_begin, row_end, x, t, y, y_stride);
    }
  });
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(fixed_matvec);

FixedMatvecFn fixed_matvec_fn() {
  return HWY_DYNAMIC_DISPATCH(fixed_matvec);
}

}  // namespace mlx_flash::kernels
#endif
