// SPDX-License-Identifier: MIT
#include "kernels/vector_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/vector_ops.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#if !FLASH_KERNEL_STUB
#include "kernels/lanes-inl.h"
#include "kernels/math-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

const char* name_of_target() {
  return hwy::TargetName(HWY_TARGET);
}

#if FLASH_KERNEL_STUB

void rms_norm(const float*, const float*, float, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void add(const float*, const float*, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void silu_mul(const float*, const float*, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void gelu_tanh_mul(const float*, const float*, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void swiglu_clipped(const float*, const float*, float, float, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void add_scaled(const float*, float, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
void softmax(float*, size_t) {
  FLASH_KERNEL_STUB_CALLED();
}
void sigmoid(float*, size_t) {
  FLASH_KERNEL_STUB_CALLED();
}
void rope(float*, const float*, size_t, bool) {
  FLASH_KERNEL_STUB_CALLED();
}
void turn_head(const HeadTurn&, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}
size_t argmax(const float*, size_t) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// out[i] = fn(a[i], b[i]), the last few by way of buffers.
template <class Fn>
HWY_INLINE void map2(
    const float* a, const float* b, size_t n, float* out, const Fn& fn) {
  const DF d;
  const size_t whole = n - n % kN;
  for (size_t i = 0; i < whole; i += kN) {
    hn::StoreU(fn(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, out + i);
  }
  if (whole == n) return;
  float last_a[kN] = {};
  float last_b[kN] = {};
  std::copy(a + whole, a + n, last_a);
  std::copy(b + whole, b + n, last_b);
  hn::StoreU(fn(hn::LoadU(d, last_a), hn::LoadU(d, last_b)), d, last_a);
  std::copy_n(last_a, n - whole, out + whole);
}

// Sum of squares in the canonical order. Squares are never -0, nor are sums
// that start at +0, so zeros may stand in for what is missing at the end.
HWY_INLINE float sum_of_squares(const float* x, size_t n) {
  Acc16 acc = zero16();
  const auto add16 = [&](const float* p) FLASH_INLINE_LAMBDA {
    const Acc16 v = load16(p);
    for_parts([&](auto i) FLASH_INLINE_LAMBDA {
      acc.part[i] = hn::MulAdd(v.part[i], v.part[i], acc.part[i]);
    });
  };
  const size_t whole = n - n % 16;
  for (size_t i = 0; i < whole; i += 16) add16(x + i);
  if (whole != n) {
    float last[16] = {};
    std::copy(x + whole, x + n, last);
    add16(last);
  }
  return reduce16(acc);
}

void rms_norm(
    const float* x, const float* weight, float eps, size_t n, float* out) {
  const float mean = sum_of_squares(x, n) / static_cast<float>(n);
  const VF factor = hn::Set(DF(), 1.0f / std::sqrt(mean + eps));
  if (weight == nullptr) {
    map2(x, x, n, out, [&](VF v, VF) FLASH_INLINE_LAMBDA {
      return hn::Mul(v, factor);
    });
  } else {
    map2(x, weight, n, out, [&](VF v, VF w) FLASH_INLINE_LAMBDA {
      return hn::Mul(hn::Mul(v, factor), w);
    });
  }
}

void add(const float* a, const float* b, size_t n, float* out) {
  map2(a, b, n, out, [](VF x, VF y) FLASH_INLINE_LAMBDA {
    return hn::Add(x, y);
  });
}

// g / (1 + exp(-z)): silu for z = g, and gelu_tanh for z = 2 u with u the
// argument of tanh, for 0.5 (1 + tanh u) = 1 / (1 + exp(-2 u)).
HWY_INLINE VF gated(VF g, VF minus_z) {
  const VF one = hn::Set(DF(), 1.0f);
  return hn::Div(g, hn::Add(one, exp_f32(DF(), minus_z)));
}

void silu_mul(const float* gate, const float* up, size_t n, float* out) {
  map2(gate, up, n, out, [](VF g, VF u) FLASH_INLINE_LAMBDA {
    return hn::Mul(gated(g, hn::Neg(g)), u);
  });
}

void gelu_tanh_mul(const float* gate, const float* up, size_t n, float* out) {
  map2(gate, up, n, out, [](VF g, VF u) FLASH_INLINE_LAMBDA {
    const VF cubic = hn::Mul(hn::Set(DF(), kGeluCubic), hn::Mul(g, g));
    const VF inner = hn::MulAdd(cubic, g, g);
    return hn::Mul(gated(g, hn::Mul(hn::Set(DF(), kGeluMinusTwoC), inner)), u);
  });
}

size_t argmax(const float* x, size_t n);

void swiglu_clipped(const float* gate,
                    const float* up,
                    float alpha,
                    float limit,
                    size_t n,
                    float* out) {
  const VF most = hn::Set(DF(), limit);
  const VF least = hn::Set(DF(), -limit);
  const VF minus_alpha = hn::Set(DF(), -alpha);
  const VF one = hn::Set(DF(), 1.0f);
  // Comparisons with NaN are false on every target: it stays.
  map2(gate, up, n, out, [&](VF g, VF u) FLASH_INLINE_LAMBDA {
    g = hn::IfThenElse(hn::Gt(g, most), most, g);
    u = hn::IfThenElse(hn::Gt(u, most), most, u);
    u = hn::IfThenElse(hn::Lt(u, least), least, u);
    return hn::Mul(hn::Add(u, one), gated(g, hn::Mul(minus_alpha, g)));
  });
}

void add_scaled(const float* x, float w, size_t n, float* out) {
  const VF weight = hn::Set(DF(), w);
  map2(x, out, n, out, [&](VF v, VF sum) FLASH_INLINE_LAMBDA {
    return hn::MulAdd(weight, v, sum);
  });
}

void softmax(float* x, size_t n) {
  const DF d;
  const float highest = x[argmax(x, n)];
  const VF shift = hn::Set(d, highest);
  map2(x, x, n, x, [&](VF v, VF) FLASH_INLINE_LAMBDA {
    return exp_f32(d, hn::Sub(v, shift));
  });
  Acc16 acc = zero16();
  const auto add16 = [&](const float* p) FLASH_INLINE_LAMBDA {
    const Acc16 v = load16(p);
    for_parts([&](auto i) FLASH_INLINE_LAMBDA {
      acc.part[i] = hn::Add(acc.part[i], v.part[i]);
    });
  };
  const size_t whole = n - n % 16;
  for (size_t i = 0; i < whole; i += 16) add16(x + i);
  if (whole != n) {
    float last[16] = {};
    std::copy(x + whole, x + n, last);
    add16(last);
  }
  const VF sum = hn::Set(d, reduce16(acc));
  map2(x, x, n, x, [&](VF v, VF) FLASH_INLINE_LAMBDA {
    return hn::Div(v, sum);
  });
}

void sigmoid(float* x, size_t n) {
  const VF one = hn::Set(DF(), 1.0f);
  map2(x, x, n, x, [&](VF v, VF) FLASH_INLINE_LAMBDA {
    return gated(one, hn::Neg(v));
  });
}

// Values of a head on their way into rope: normed and scaled, each product
// rounded as rms_norm() and a multiplication would.
template <bool kNorm, bool kScale>
struct Ready {
  const float* weight;
  float factor;
  float scale;

  HWY_INLINE float operator()(float v, size_t i) const {
    if constexpr (kNorm) v = v * factor * weight[i];
    if constexpr (kScale) v = v * scale;
    return v;
  }
  HWY_INLINE VF operator()(VF v, VF w) const {
    if constexpr (kNorm) v = hn::Mul(hn::Mul(v, hn::Set(DF(), factor)), w);
    if constexpr (kScale) v = hn::Mul(v, hn::Set(DF(), scale));
    return v;
  }
  HWY_INLINE VF weights(size_t i) const {
    if constexpr (kNorm) return hn::LoadU(DF(), weight + i);
    return hn::Zero(DF());
  }
  HWY_INLINE void weight_pairs(size_t i, VF& even, VF& odd) const {
    even = odd = hn::Zero(DF());
    if constexpr (kNorm) hn::LoadInterleaved2(DF(), weight + i, even, odd);
  }
};

HWY_INLINE void turn_pair(VF c, VF s, VF& a, VF& b) {
  const VF turned = hn::Sub(hn::Mul(a, c), hn::Mul(b, s));
  b = hn::Add(hn::Mul(a, s), hn::Mul(b, c));
  a = turned;
}

HWY_INLINE void turn_pair(float c, float s, float& a, float& b) {
  const float turned = a * c - b * s;
  b = a * s + b * c;
  a = turned;
}

template <class R>
HWY_INLINE void turn_halves(
    const R& ready, const float* cos, const float* sin, size_t half, float* x) {
  const DF d;
  const size_t whole = half - half % kN;
  for (size_t i = 0; i < whole; i += kN) {
    VF a = ready(hn::LoadU(d, x + i), ready.weights(i));
    VF b = ready(hn::LoadU(d, x + half + i), ready.weights(half + i));
    turn_pair(hn::LoadU(d, cos + i), hn::LoadU(d, sin + i), a, b);
    hn::StoreU(a, d, x + i);
    hn::StoreU(b, d, x + half + i);
  }
  for (size_t i = whole; i < half; ++i) {
    float a = ready(x[i], i);
    float b = ready(x[half + i], half + i);
    turn_pair(cos[i], sin[i], a, b);
    x[i] = a;
    x[half + i] = b;
  }
}

template <class R>
HWY_INLINE void turn_pairs(
    const R& ready, const float* cos, const float* sin, size_t half, float* x) {
  const DF d;
  const size_t whole = half - half % kN;
  for (size_t i = 0; i < whole; i += kN) {
    VF a, b, even, odd;
    hn::LoadInterleaved2(d, x + 2 * i, a, b);
    ready.weight_pairs(2 * i, even, odd);
    a = ready(a, even);
    b = ready(b, odd);
    turn_pair(hn::LoadU(d, cos + i), hn::LoadU(d, sin + i), a, b);
    hn::StoreInterleaved2(a, b, d, x + 2 * i);
  }
  for (size_t i = whole; i < half; ++i) {
    float a = ready(x[2 * i], 2 * i);
    float b = ready(x[2 * i + 1], 2 * i + 1);
    turn_pair(cos[i], sin[i], a, b);
    x[2 * i] = a;
    x[2 * i + 1] = b;
  }
}

// Values [begin, end) that do not turn.
template <class R>
HWY_INLINE void keep_straight(const R& ready,
                              size_t begin,
                              size_t end,
                              float* x) {
  const DF d;
  size_t i = begin;
  for (; i + kN <= end; i += kN) {
    hn::StoreU(ready(hn::LoadU(d, x + i), ready.weights(i)), d, x + i);
  }
  for (; i < end; ++i) x[i] = ready(x[i], i);
}

template <bool kNorm, bool kScale>
HWY_INLINE void turn_with(const HeadTurn& turn,
                          float factor,
                          size_t n,
                          float* x) {
  const Ready<kNorm, kScale> ready{turn.weight, factor, turn.scale};
  if (turn.cos_sin == nullptr) {
    if (kNorm || kScale) keep_straight(ready, 0, turn.dims, x);
  } else {
    const size_t half = turn.dims / 2;
    const float* sin = turn.cos_sin + half;
    if (turn.interleaved) {
      turn_pairs(ready, turn.cos_sin, sin, half, x);
    } else {
      turn_halves(ready, turn.cos_sin, sin, half, x);
    }
  }
  const Ready<kNorm, false> rest{turn.weight, factor, 1};
  if (kNorm) keep_straight(rest, turn.dims, n, x);
}

void turn_head(const HeadTurn& turn, size_t n, float* x) {
  if (turn.weight == nullptr) {
    if (turn.scale == 1.0f) return turn_with<false, false>(turn, 1, n, x);
    return turn_with<false, true>(turn, 1, n, x);
  }
  const float mean = sum_of_squares(x, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean + turn.eps);
  if (turn.scale == 1.0f) return turn_with<true, false>(turn, factor, n, x);
  turn_with<true, true>(turn, factor, n, x);
}

void rope(float* x,
          const float* cos_sin,
          size_t rotary_dims,
          bool interleaved) {
  turn_with<false, false>(
      {.cos_sin = cos_sin, .dims = rotary_dims, .interleaved = interleaved},
      1,
      rotary_dims,
      x);
}

size_t argmax(const float* x, size_t n) {
  const DF d;
  // First the value, then its first place. NaN compares false and never wins.
  VF best = hn::Set(d, -std::numeric_limits<float>::infinity());
  const size_t whole = n - n % kN;
  for (size_t i = 0; i < whole; i += kN) {
    const VF v = hn::LoadU(d, x + i);
    best = hn::IfThenElse(hn::Gt(v, best), v, best);
  }
  float lanes[kN];
  hn::StoreU(best, d, lanes);
  float value = lanes[0];
  for (size_t i = 1; i < kN; ++i) value = lanes[i] > value ? lanes[i] : value;
  for (size_t i = whole; i < n; ++i) value = x[i] > value ? x[i] : value;
  const VF wanted = hn::Set(d, value);
  for (size_t i = 0; i < whole; i += kN) {
    const intptr_t lane =
        hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, x + i), wanted));
    if (lane >= 0) return i + static_cast<size_t>(lane);
  }
  for (size_t i = whole; i < n; ++i) {
    if (x[i] == value) return i;
  }
  return 0;
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(name_of_target);
HWY_EXPORT(rms_norm);
HWY_EXPORT(add);
HWY_EXPORT(silu_mul);
HWY_EXPORT(gelu_tanh_mul);
HWY_EXPORT(swiglu_clipped);
HWY_EXPORT(add_scaled);
HWY_EXPORT(softmax);
HWY_EXPORT(sigmoid);
HWY_EXPORT(rope);
HWY_EXPORT(turn_head);
HWY_EXPORT(argmax);

bool supported() {
  constexpr int64_t kStubs = HWY_SCALAR | HWY_EMU128;
  return (hwy::SupportedTargets() & HWY_TARGETS & ~kStubs) != 0;
}

const char* target_name() {
  return HWY_DYNAMIC_DISPATCH(name_of_target)();
}

void rms_norm(
    const float* x, const float* weight, float eps, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, eps, n, out);
}

void add(const float* a, const float* b, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(add)(a, b, n, out);
}

void silu_mul(const float* gate, const float* up, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(silu_mul)(gate, up, n, out);
}

void gelu_tanh_mul(const float* gate, const float* up, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(gelu_tanh_mul)(gate, up, n, out);
}

void swiglu_clipped(const float* gate,
                    const float* up,
                    float alpha,
                    float limit,
                    size_t n,
                    float* out) {
  HWY_DYNAMIC_DISPATCH(swiglu_clipped)(gate, up, alpha, limit, n, out);
}

void add_scaled(const float* x, float w, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(add_scaled)(x, w, n, out);
}

void softmax(float* x, size_t n) {
  HWY_DYNAMIC_DISPATCH(softmax)(x, n);
}

void sigmoid(float* x, size_t n) {
  HWY_DYNAMIC_DISPATCH(sigmoid)(x, n);
}

void rope(float* x,
          const float* cos_sin,
          size_t rotary_dims,
          bool interleaved) {
  HWY_DYNAMIC_DISPATCH(rope)(x, cos_sin, rotary_dims, interleaved);
}

void turn_head(const HeadTurn& turn, size_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(turn_head)(turn, n, x);
}

size_t argmax(const float* x, size_t n) {
  return HWY_DYNAMIC_DISPATCH(argmax)(x, n);
}

}  // namespace mlx_flash::kernels
#endif
