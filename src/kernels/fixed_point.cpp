// SPDX-License-Identifier: MIT
#include "kernels/fixed_point.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/code_order.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/fixed_point.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#if !FLASH_KERNEL_STUB
#include "kernels/lanes-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

bool quantise(
    const float*, size_t, const FixedLayout&, CodeOrder, int, std::byte*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// n values as integers, in the order they lie in; yields their sum.
HWY_INLINE int32_t round_group(
    const float* x, size_t n, float factor, CodeOrder order, int16_t* out) {
  const hn::Rebind<int16_t, DF> d16;
  const VF v = hn::Set(DF(), factor);
  VI sum = hn::Zero(DI());
  const auto put = [&](VF values, int16_t* to) FLASH_INLINE_LAMBDA {
    const VI q = hn::NearestInt(hn::Mul(values, v));
    sum = hn::Add(sum, q);
    hn::StoreU(hn::DemoteTo(d16, q), d16, to);
  };
  if (order == CodeOrder::kNatural) {
    for (size_t k = 0; k < n; k += kN) put(hn::LoadU(DF(), x + k), out + k);
  } else {
    for (size_t k = 0; k < n; k += 32) {
      for (size_t i = 0; i < 16; i += kN) {
        VF even;
        VF odd;
        hn::LoadInterleaved2(DF(), x + k + 2 * i, even, odd);
        put(even, out + k + i);
        put(odd, out + k + 16 + i);
      }
    }
  }
  return hn::GetLane(hn::SumOfLanes(DI(), sum));
}

// The sum of q[4i] q[4i + 2] + q[4i + 1] q[4i + 3] modulo 2^32, of those that
// are taken in pairs.
HWY_INLINE uint32_t sum_of_pairs(const int16_t* q, size_t n) {
  // Each product once: of four lanes the first two.
  alignas(32) static constexpr int16_t kFirst[kPairCycle] = {
      -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, 0, 0, 0, 0};
  static_assert(taken_in_pairs(11) && !taken_in_pairs(12));
  const hn::CappedTag<int16_t, 16> d16;
  const hn::RepartitionToWide<decltype(d16)> d32;
  auto sum = hn::Zero(d32);
  auto high = hn::Zero(d32);
  for (size_t k = 0; k < n; k += hn::MaxLanes(d16)) {
    const auto both = hn::LoadU(d16, q + k);
    const auto swapped =
        hn::BitCast(d16, hn::Shuffle2301(hn::BitCast(d32, both)));
    const auto first = hn::And(both, hn::Load(d16, kFirst + k % kPairCycle));
    sum = hn::ReorderWidenMulAccumulate(d32, first, swapped, sum, high);
  }
  const auto total = hn::RearrangeToOddPlusEven(sum, high);
  return static_cast<uint32_t>(hn::GetLane(hn::SumOfLanes(d32, total)));
}

// The largest magnitude, or NaN or infinity if there is one.
HWY_INLINE float largest(const float* x, size_t n) {
  // Magnitudes are ordered like their bits, with NaN above infinity.
  VI top = hn::Zero(DI());
  for (size_t k = 0; k < n; k += kN) {
    top = hn::Max(top, hn::BitCast(DI(), hn::Abs(hn::LoadU(DF(), x + k))));
  }
  return hn::GetLane(hn::BitCast(DF(), hn::MaxOfLanes(DI(), top)));
}

template <typename T>
HWY_INLINE void put(std::byte* row, size_t at, T value) {
  std::memcpy(row + at, &value, sizeof(T));
}

bool quantise(const float* x,
              size_t groups,
              const FixedLayout& layout,
              CodeOrder order,
              int zero,
              std::byte* row) {
  const size_t n = layout.group_size();
  auto* values = reinterpret_cast<int16_t*>(row);
  for (size_t g = 0; g < groups; ++g) {
    const float m = largest(x + g * n, n);
    if (m == 0.0f) continue;
    if (!(m >= kFixedRangeLow && m <= kFixedRangeHigh)) return false;
    const float s = m / kFixedLargest;
    int16_t* out = values + g * n;
    const int32_t sum =
        round_group(x + g * n, n, kFixedLargest / m, order, out);
    const size_t at = layout.number_at(g);
    put(row, at, s);
    put(row, at + FixedLayout::kSumAt, s * static_cast<float>(sum));
    put(row, at + FixedLayout::kZeroSumAt, zero * sum);
    put(row,
        at + FixedLayout::kPairStartAt,
        0u - static_cast<uint32_t>(zero * sum) - sum_of_pairs(out, n));
  }
  return true;
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(quantise);

bool integer_coded(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kF32:
    case WeightKind::kF16:
    case WeightKind::kBF16:
    case WeightKind::kMxfp8:
    case WeightKind::kFp8:
      return false;
    default:
      return true;
  }
}

FixedLayout::FixedLayout(const WeightFormat& format, size_t cols)
    : group_size_(scale_group(format)),
      groups_((cols / group_size_ + kChunkGroups - 1) / kChunkGroups *
              kChunkGroups),
      numbers_at_(groups_ * group_size_ * sizeof(int16_t)),
      row_bytes_((fits_at() + sizeof(uint32_t) + 63) / 64 * 64) {}

void prepare_fixed(const WeightFormat& format,
                   size_t cols,
                   const float* x,
                   size_t x_stride,
                   size_t begin,
                   size_t end,
                   std::byte* out) {
  FLASH_CHECK(integer_coded(format) && format_accepts(format, cols));
  const FixedLayout layout(format, cols);
  for (size_t t = begin; t < end; ++t) {
    std::byte* row = out + t * layout.row_bytes();
    std::memset(row, 0, layout.row_bytes());
    const bool fits = HWY_DYNAMIC_DISPATCH(quantise)(x + t * x_stride,
                                                     cols / layout.group_size(),
                                                     layout,
                                                     code_order(format),
                                                     code_zero(format),
                                                     row);
    if (!fits) std::memset(row, 0, layout.row_bytes());
    const uint32_t mark = fits ? 1 : 0;
    std::memcpy(row + layout.fits_at(), &mark, sizeof(mark));
  }
}

}  // namespace mlx_flash::kernels
#endif
