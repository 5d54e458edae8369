// SPDX-License-Identifier: MIT

// The sixteen accumulators of the canonical dot product (kernels/matmul.h) as
// vectors of the present target: one of 16 lanes, two of 8 or four of 4.
// Compiled once for each target, hence no #pragma once.

#if defined(MLX_FLASH_KERNELS_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_LANES_INL_H_
#undef MLX_FLASH_KERNELS_LANES_INL_H_
#else
#define MLX_FLASH_KERNELS_LANES_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "hwy/highway.h"

// Lambdas need the target's attributes, and must vanish in their caller.
#define FLASH_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;
using VI = hn::Vec<DI>;

constexpr size_t kN = hn::MaxLanes(DF());  // lanes of one vector
constexpr size_t kParts = 16 / kN;         // vectors that hold 16 lanes
static_assert(kN == 4 || kN == 8 || kN == 16);

// Which of the kParts vectors: lanes [P * kN, (P + 1) * kN) of sixteen.
template <size_t P>
using Part = std::integral_constant<size_t, P>;

// fn(Part<P>()) for each part in order; unrolled by construction.
template <class Fn>
HWY_INLINE void for_parts(const Fn& fn) {
  fn(Part<0>());
  if constexpr (kParts > 1) fn(Part<1>());
  if constexpr (kParts > 2) {
    fn(Part<2>());
    fn(Part<3>());
  }
}

struct Acc16 {
  VF part[kParts];
};

HWY_INLINE Acc16 zero16() {
  Acc16 acc;
  for_parts([&](auto p) FLASH_INLINE_LAMBDA { acc.part[p] = hn::Zero(DF()); });
  return acc;
}

HWY_INLINE Acc16 load16(const float* p) {
  Acc16 acc;
  for_parts([&](auto i) FLASH_INLINE_LAMBDA {
    acc.part[i] = hn::LoadU(DF(), p + i * kN);
  });
  return acc;
}

HWY_INLINE void store16(const Acc16& acc, float* p) {
  for_parts([&](auto i) FLASH_INLINE_LAMBDA {
    hn::StoreU(acc.part[i], DF(), p + i * kN);
  });
}

// Step 3 of the canonical dot product: the fixed tree over sixteen lanes.
HWY_INLINE float reduce16(const Acc16& acc) {
  const hn::Full128<float> d4;
  const hn::Repartition<double, decltype(d4)> d2;
  hn::Vec<hn::Full128<float>> t;  // s[i] + s[i + 4], i < 4
#if HWY_MAX_BYTES == 64
  const hn::Half<DF> d8;
  const auto s =
      hn::Add(hn::LowerHalf(d8, acc.part[0]), hn::UpperHalf(d8, acc.part[0]));
  t = hn::Add(hn::LowerHalf(d4, s), hn::UpperHalf(d4, s));
#elif HWY_MAX_BYTES == 32
  const auto s = hn::Add(acc.part[0], acc.part[1]);
  t = hn::Add(hn::LowerHalf(d4, s), hn::UpperHalf(d4, s));
#else
  t = hn::Add(hn::Add(acc.part[0], acc.part[2]),
              hn::Add(acc.part[1], acc.part[3]));
#endif
  const auto high = hn::BitCast(
      d4, hn::InterleaveUpper(d2, hn::BitCast(d2, t), hn::BitCast(d2, t)));
  const auto u = hn::Add(t, high);  // lanes 0 and 1
  return hn::GetLane(hn::Add(u, hn::DupOdd(u)));
}

template <typename T>
HWY_INLINE T load_as(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

// Broadcasts of one stored number, widened to float32.
HWY_INLINE VF broadcast_f16(const uint8_t* p) {
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<hwy::float16_t, DF> df16;
  return hn::PromoteTo(DF(),
                       hn::BitCast(df16, hn::Set(du16, load_as<uint16_t>(p))));
}
HWY_INLINE VF broadcast_bf16(const uint8_t* p) {
  const hn::Repartition<uint16_t, DF> du16;
  const auto both = hn::BitCast(DU(), hn::Set(du16, load_as<uint16_t>(p)));
  return hn::BitCast(DF(), hn::And(both, hn::Set(DU(), 0xFFFF0000u)));
}
HWY_INLINE VF broadcast_f32(const uint8_t* p) {
  return hn::Set(DF(), load_as<float>(p));
}

HWY_INLINE float f16_to_float(uint16_t bits) {
  const hn::CappedTag<float, 1> d;
  const hn::Rebind<uint16_t, decltype(d)> du16;
  const hn::Rebind<hwy::float16_t, decltype(d)> df16;
  return hn::GetLane(hn::PromoteTo(d, hn::BitCast(df16, hn::Set(du16, bits))));
}

// a * b + c in one rounding, without a call into the C library.
HWY_INLINE float fma_one(float a, float b, float c) {
  const hn::CappedTag<float, 1> d;
  return hn::GetLane(hn::MulAdd(hn::Set(d, a), hn::Set(d, b), hn::Set(d, c)));
}

// kN consecutive stored numbers, widened to float32.
HWY_INLINE VF load_f16(const uint8_t* p) {
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<hwy::float16_t, DF> df16;
  return hn::PromoteTo(
      DF(),
      hn::BitCast(df16, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(p))));
}
HWY_INLINE VF load_bf16(const uint8_t* p) {
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::PromoteTo(
      DU(), hn::LoadU(du16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
}
HWY_INLINE VF load_f32(const uint8_t* p) {
  return hn::LoadU(DF(), reinterpret_cast<const float*>(p));
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_LANES_INL_H_
