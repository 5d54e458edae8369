// SPDX-License-Identifier: MIT

// exp for float32 vectors with the same bits on every target: only fused
// multiply-adds, multiplications and integer operations, in a fixed order.

#if defined(MLX_FLASH_KERNELS_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_MATH_INL_H_
#undef MLX_FLASH_KERNELS_MATH_INL_H_
#else
#define MLX_FLASH_KERNELS_MATH_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/math_constants.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// e^x = 2^n e^r with n = round(x / ln 2). Within 1 ulp; results below 2^-126
// round twice. exp(-inf) = 0, exp(inf) = inf, exp(NaN) = NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_f32(D d, V x) {
  const hn::RebindToSigned<D> di;
  const auto lowest = hn::Set(d, kExpLowest);
  const auto highest = hn::Set(d, kExpHighest);
  // Comparisons with NaN are false on every target; Min and Max are not alike.
  V a = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);
  a = hn::IfThenElse(hn::Gt(a, highest), highest, a);
  const auto magic = hn::Set(d, kExpMagic);
  const V shifted = hn::MulAdd(a, hn::Set(d, kExpLog2E), magic);
  const auto n = hn::Sub(hn::BitCast(di, shifted), hn::BitCast(di, magic));
  const V nf = hn::Sub(shifted, magic);
  V r = hn::MulAdd(nf, hn::Set(d, -kExpLn2High), a);
  r = hn::MulAdd(nf, hn::Set(d, -kExpLn2Low), r);
  V p = hn::Set(d, kExpPoly[0]);
  for (size_t i = 1; i < kExpTerms; ++i) {
    p = hn::MulAdd(p, r, hn::Set(d, kExpPoly[i]));
  }
  // In two factors: 2^n alone leaves the exponent's range at both ends.
  const auto half = hn::ShiftRight<1>(n);
  const auto rest = hn::Sub(n, half);
  const auto bias = hn::Set(di, 127);
  const V f0 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const V f1 = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(rest, bias)));
  const V e = hn::Mul(hn::Mul(p, f0), f1);
  return hn::IfThenElse(hn::Eq(x, x), e, x);
}

// One number, with the bits of a lane.
HWY_INLINE float exp_one(float x) {
  const hn::CappedTag<float, 1> d;
  return hn::GetLane(exp_f32(d, hn::Set(d, x)));
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_MATH_INL_H_
