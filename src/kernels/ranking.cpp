// SPDX-License-Identifier: MIT
#include "kernels/ranking.h"

#include <limits>

#include "base/check.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/ranking.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#if !FLASH_KERNEL_STUB
#include "kernels/lanes-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

size_t rank(const float*, size_t, uint32_t, size_t, Ranked*, size_t) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Vectors that are looked at together.
constexpr size_t kAtOnce = 4;

size_t rank(const float* x,
            size_t n,
            uint32_t first_id,
            size_t most,
            Ranked* best,
            size_t count) {
  const DF d;
  const auto least = [&] {
    return count == most ? best[most - 1].value
                         : -std::numeric_limits<float>::infinity();
  };
  const auto keep = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      // False for NaN.
      if (!(x[i] >= least())) continue;
      count = keep_ranked(
          {x[i], first_id + static_cast<uint32_t>(i)}, most, best, count);
    }
  };
  constexpr size_t kStep = kAtOnce * kN;
  const size_t whole = n - n % kStep;
  for (size_t i = 0; i < whole; i += kStep) {
    const VF limit = hn::Set(d, least());
    const auto a = hn::Or(hn::Ge(hn::LoadU(d, x + i), limit),
                          hn::Ge(hn::LoadU(d, x + i + kN), limit));
    const auto b = hn::Or(hn::Ge(hn::LoadU(d, x + i + 2 * kN), limit),
                          hn::Ge(hn::LoadU(d, x + i + 3 * kN), limit));
    if (!hn::AllFalse(d, hn::Or(a, b))) keep(i, i + kStep);
  }
  keep(whole, n);
  return count;
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(rank);

size_t keep_ranked(Ranked candidate, size_t most, Ranked* best, size_t count) {
  size_t at = count;
  while (at > 0 && ranks_before(candidate, best[at - 1])) --at;
  if (at == most) return count;
  const size_t length = count < most ? count + 1 : most;
  for (size_t i = length - 1; i > at; --i) best[i] = best[i - 1];
  best[at] = candidate;
  return length;
}

size_t rank(const float* x,
            size_t n,
            uint32_t first_id,
            size_t most,
            Ranked* best,
            size_t count) {
  return HWY_DYNAMIC_DISPATCH(rank)(x, n, first_id, most, best, count);
}

}  // namespace mlx_flash::kernels
#endif
