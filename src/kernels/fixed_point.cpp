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

#ifndef MLX_FLASH_KERNELS_FIXED_ROW_
#define MLX_FLASH_KERNELS_FIXED_ROW_
namespace mlx_flash::kernels {

// Where the parts of one row go.
struct FixedRow {
  int16_t* values;
  float* scales;
  float* sums;
  int32_t* zero_sums;
  uint32_t* fits;
};

}  // namespace mlx_flash::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

bool quantise(const float*, size_t, size_t, CodeOrder, int, const FixedRow&) {
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

// The largest magnitude, or NaN or infinity if there is one.
HWY_INLINE float largest(const float* x, size_t n) {
  // Magnitudes are ordered like their bits, with NaN above infinity.
  VI top = hn::Zero(DI());
  for (size_t k = 0; k < n; k += kN) {
    top = hn::Max(top, hn::BitCast(DI(), hn::Abs(hn::LoadU(DF(), x + k))));
  }
  return hn::GetLane(hn::BitCast(DF(), hn::MaxOfLanes(DI(), top)));
}

bool quantise(const float* x,
              size_t groups,
              size_t n,
              CodeOrder order,
              int zero,
              const FixedRow& row) {
  for (size_t g = 0; g < groups; ++g) {
    const float m = largest(x + g * n, n);
    if (m == 0.0f) {
      row.scales[g] = row.sums[g] = 0.0f;
      row.zero_sums[g] = 0;
      std::fill_n(row.values + g * n, n, int16_t{0});
      continue;
    }
    if (!(m >= kFixedRangeLow && m <= kFixedRangeHigh)) return false;
    const float s = m / kFixedLargest;
    const int32_t sum =
        round_group(x + g * n, n, kFixedLargest / m, order, row.values + g * n);
    row.scales[g] = s;
    row.sums[g] = s * static_cast<float>(sum);
    row.zero_sums[g] = zero * sum;
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
      return false;
    default:
      return true;
  }
}

FixedLayout::FixedLayout(const WeightFormat& format, size_t cols)
    : group_size_(scale_group(format)),
      groups_((cols / group_size_ + kChunkGroups - 1) / kChunkGroups *
              kChunkGroups),
      scales_at_(groups_ * group_size_ * sizeof(int16_t)),
      row_bytes_((scales_at_ + groups_ * 12 + sizeof(uint32_t) + 63) / 64 *
                 64) {}

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
    std::byte* to = out + t * layout.row_bytes();
    const size_t at = layout.groups() * layout.group_size() * sizeof(int16_t);
    const FixedRow row = {
        reinterpret_cast<int16_t*>(to),
        reinterpret_cast<float*>(to + at),
        reinterpret_cast<float*>(to + at + layout.groups() * 4),
        reinterpret_cast<int32_t*>(to + at + layout.groups() * 8),
        reinterpret_cast<uint32_t*>(to + at + layout.groups() * 12)};
    const size_t groups = cols / layout.group_size();
    const bool fits = HWY_DYNAMIC_DISPATCH(quantise)(x + t * x_stride,
                                                     groups,
                                                     layout.group_size(),
                                                     code_order(format),
                                                     code_zero(format),
                                                     row);
    if (!fits) std::memset(to, 0, layout.row_bytes());
    *row.fits = fits ? 1 : 0;
    for (size_t g = groups; g < layout.groups() && fits; ++g) {
      row.scales[g] = row.sums[g] = 0.0f;
      row.zero_sums[g] = 0;
      std::fill_n(row.values + g * layout.group_size(),
                  layout.group_size(),
                  int16_t{0});
    }
  }
}

}  // namespace mlx_flash::kernels
#endif
