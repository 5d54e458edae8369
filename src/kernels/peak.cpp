// SPDX-License-Identifier: MIT
#include "kernels/peak.h"

#include <algorithm>

#include "base/clock.h"
#include "kernels/code_order.h"
#include "kernels/fixed_point.h"
#include "kernels/row_kernels.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/peak.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#if !FLASH_KERNEL_STUB
#include "kernels/fixed_lanes-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

double fma_loop(size_t) {
  FLASH_KERNEL_STUB_CALLED();
}
double mix_loop(size_t, size_t, bool, bool, bool) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Chains side by side: enough to hide the latency of one, few enough for
// sixteen registers.
constexpr size_t kChains = 10;

// The compiler must neither drop nor foresee what a loop computes.
template <class V>
HWY_INLINE void keep(V& v) {
#if HWY_ARCH_X86
  asm volatile("" : "+x"(v.raw));
#else
  asm volatile("" : "+w"(v.raw));
#endif
}

// Operations done.
double fma_loop(size_t rounds) {
  VF w = hn::Set(DF(), 0.5f);
  VF a0 = w, a1 = w, a2 = w, a3 = w, a4 = w;
  VF a5 = w, a6 = w, a7 = w, a8 = w, a9 = w;
  // Unknown to the compiler, or it would see that all are equal.
  for (VF* a : {&a0, &a1, &a2, &a3, &a4, &a5, &a6, &a7, &a8, &a9}) keep(*a);
  for (size_t i = 0; i < rounds; ++i) {
    keep(w);
    a0 = hn::MulAdd(w, w, a0);
    a1 = hn::MulAdd(w, w, a1);
    a2 = hn::MulAdd(w, w, a2);
    a3 = hn::MulAdd(w, w, a3);
    a4 = hn::MulAdd(w, w, a4);
    a5 = hn::MulAdd(w, w, a5);
    a6 = hn::MulAdd(w, w, a6);
    a7 = hn::MulAdd(w, w, a7);
    a8 = hn::MulAdd(w, w, a8);
    a9 = hn::MulAdd(w, w, a9);
  }
  VF sum = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)),
                   hn::Add(hn::Add(a4, a5), hn::Add(a6, a7)));
  sum = hn::Add(sum, hn::Add(a8, a9));
  keep(sum);
  return 2.0 * static_cast<double>(kChains * kN * rounds);
}

using V16 = hn::Vec<hn::Repartition<int16_t, DI> >;

// One chain: the sums of a group of values, then what is done once.
struct Chain {
  VI sum;
  VI high;
  VF acc;

  HWY_INLINE void add(V16 w, V16 x) { sum = dot_pairs(DI(), w, x, sum, high); }
  // Four values of a lane (fixed_gemm.cpp).
  HWY_INLINE void add_paired(V16 w0, V16 w1, V16 q0, V16 q1) {
    add(hn::Add(q0, w1), hn::Add(q1, w0));
  }
  HWY_INLINE void close(VF scale, bool subtract, bool offset) {
    VI total = hn::RearrangeToOddPlusEven(sum, high);
    if (subtract) total = hn::Sub(total, hn::Set(DI(), 1));
    acc = hn::MulAdd(hn::Mul(scale, scale), hn::ConvertTo(DF(), total), acc);
    if (offset) acc = hn::MulAdd(scale, scale, acc);
    sum = hn::Zero(DI());
  }
};

// `group` values a lane and round. Paired: products as taken_in_pairs() says.
double mix_loop(
    size_t rounds, size_t group, bool zero, bool offset, bool paired) {
  const hn::Repartition<int16_t, DI> d16;
  V16 w0 = hn::Set(d16, int16_t{3});
  V16 w1 = hn::Set(d16, int16_t{5});
  V16 x0 = w0;
  V16 x1 = w1;
  VF scale = hn::Set(DF(), 0x1p-20f);
  const Chain start = {hn::Zero(DI()), hn::Zero(DI()), hn::Zero(DF())};
  Chain c0 = start, c1 = start, c2 = start, c3 = start, c4 = start;
  Chain c5 = start, c6 = start, c7 = start, c8 = start, c9 = start;
  const auto each = [&](const auto& fn) FLASH_INLINE_LAMBDA {
    fn(c0), fn(c1), fn(c2), fn(c3), fn(c4);
    fn(c5), fn(c6), fn(c7), fn(c8), fn(c9);
  };
  each([](Chain& c) FLASH_INLINE_LAMBDA {
    keep(c.sum);
    keep(c.acc);
  });
  // A pair is added to what a row of x and one of W begin with.
  const bool subtract = zero || paired;
  for (size_t i = 0; i < rounds; ++i) {
    for (size_t k = 0; k < group; k += 4) {
      keep(x0);
      keep(x1);
      if (paired && taken_in_pairs(k)) {
        // In every chain anew, as with other rows of x.
        each([&](Chain& c) FLASH_INLINE_LAMBDA {
          keep(w0);
          c.add_paired(w0, w1, x0, x1);
        });
      } else {
        each([&](Chain& c) FLASH_INLINE_LAMBDA { c.add(w0, x0); });
        each([&](Chain& c) FLASH_INLINE_LAMBDA { c.add(w1, x1); });
      }
    }
    keep(scale);
    each([&](Chain& c) FLASH_INLINE_LAMBDA {
      c.close(scale, subtract, offset);
      keep(c.sum);
    });
  }
  each([](Chain& c) FLASH_INLINE_LAMBDA { keep(c.acc); });
  return 2.0 * static_cast<double>(kChains * kN * group * rounds);
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(fma_loop);
HWY_EXPORT(mix_loop);

namespace {

// The best of a few runs: what else the machine does only takes away.
template <class Loop>
double best_rate(const Loop& loop) {
  constexpr int kRuns = 5;
  constexpr double kSeconds = 0.02;
  size_t rounds = 1000;
  double best = 0;
  for (int run = 0; run < kRuns;) {
    const double start = now_seconds();
    const double operations = loop(rounds);
    const double seconds = now_seconds() - start;
    if (seconds < kSeconds) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, operations / seconds);
    ++run;
  }
  return best;
}

}  // namespace

double peak_fma_flops() {
  return best_rate(
      [](size_t rounds) { return HWY_DYNAMIC_DISPATCH(fma_loop)(rounds); });
}

double peak_mix_flops(const WeightFormat& format) {
  if (!integer_coded(format)) return peak_fma_flops();
  const size_t group = scale_group(format);
  const bool zero = code_zero(format) != 0;
  const bool offset = code_offset(format);
  return best_rate([&](size_t rounds) {
    return HWY_DYNAMIC_DISPATCH(mix_loop)(
        rounds, group, zero, offset, fixed_gemm_pairs());
  });
}

}  // namespace mlx_flash::kernels
#endif
