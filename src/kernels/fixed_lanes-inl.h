// SPDX-License-Identifier: MIT

// Vectors of the integer kernels: sixteen int16, eight int32 and eight floats,
// one vector each where vectors have 256 bits or more, else two halves.
// Sums of integers are exact, so each target may order them as it likes.

#if defined(MLX_FLASH_KERNELS_FIXED_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_FIXED_LANES_INL_H_
#undef MLX_FLASH_KERNELS_FIXED_LANES_INL_H_
#else
#define MLX_FLASH_KERNELS_FIXED_LANES_INL_H_
#endif

#include "kernels/lanes-inl.h"

// Multiply-add of int16 pairs in one instruction, AVX512-VNNI's vpdpwssd, which
// Highway 1.0 does not offer: in assembler, because that version enables
// AVX-VNNI by mistake where it means AVX512-VNNI.
#undef FLASH_DOT_INSTRUCTION
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3_DL
#define FLASH_DOT_INSTRUCTION 1
#else
#define FLASH_DOT_INSTRUCTION 0
#endif

// Vectors of 128 bits.
#undef FLASH_TWO_HALVES
#define FLASH_TWO_HALVES (HWY_MAX_BYTES == 16)

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

using DS16 = hn::CappedTag<int16_t, 16>;
using DU16 = hn::RebindToUnsigned<DS16>;
using DI8 = hn::CappedTag<int32_t, 8>;
using DF8 = hn::RebindToFloat<DI8>;
using DU8 = hn::RebindToUnsigned<DI8>;
using D16B = hn::Full128<uint8_t>;
using V16B = hn::Vec<D16B>;

constexpr size_t kHalves = 16 / hn::MaxLanes(DS16());
constexpr size_t kLanes8 = 8 / kHalves;
static_assert(kHalves == 1 + FLASH_TWO_HALVES);

struct S16 {
  hn::Vec<DS16> half[kHalves];
};
struct I8 {
  hn::Vec<DI8> half[kHalves];
};
struct F8 {
  hn::Vec<DF8> half[kHalves];
};

// fn(h) for each half, unrolled.
template <class Fn>
HWY_INLINE void for_halves(const Fn& fn) {
  fn(Part<0>());
  if constexpr (kHalves > 1) fn(Part<1>());
}

// The same pointer, which the compiler knows nothing about: keeps it from
// spreading the addresses computed from it over registers it does not have.
HWY_INLINE const uint8_t* opaque(const uint8_t* p) {
  asm("" : "+r"(p));
  return p;
}

HWY_INLINE I8 zero_i8() {
  I8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA { v.half[h] = hn::Zero(DI8()); });
  return v;
}
HWY_INLINE F8 set_f8(float value) {
  F8 v;
  for_halves([&](auto h)
                 FLASH_INLINE_LAMBDA { v.half[h] = hn::Set(DF8(), value); });
  return v;
}
HWY_INLINE S16 load_s16(const int16_t* p) {
  S16 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::LoadU(DS16(), p + h * 2 * kLanes8);
  });
  return v;
}
HWY_INLINE void store_s16(const S16& v, int16_t* p) {
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    hn::StoreU(v.half[h], DS16(), p + h * 2 * kLanes8);
  });
}
HWY_INLINE F8 load_f8(const float* p) {
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::LoadU(DF8(), p + h * kLanes8);
  });
  return v;
}
HWY_INLINE void store_f8(const F8& v, float* p) {
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    hn::StoreU(v.half[h], DF8(), p + h * kLanes8);
  });
}
HWY_INLINE F8 mul(const F8& a, const F8& b) {
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::Mul(a.half[h], b.half[h]);
  });
  return v;
}
HWY_INLINE F8 mul_add(const F8& a, const F8& b, const F8& c) {
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::MulAdd(a.half[h], b.half[h], c.half[h]);
  });
  return v;
}
HWY_INLINE F8 to_f8(const I8& a) {
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::ConvertTo(DF8(), a.half[h]);
  });
  return v;
}
// a - *p for eight int32 at p.
HWY_INLINE I8 subtract(const I8& a, const int32_t* p) {
  I8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::Sub(a.half[h], hn::LoadU(DI8(), p + h * kLanes8));
  });
  return v;
}

// Sixteen bytes as int16.
template <typename T>
HWY_INLINE S16 widen(V16B bytes) {
  const hn::Full128<T> d;
  const auto v = hn::BitCast(d, bytes);
  S16 out;
#if FLASH_TWO_HALVES
  const hn::Half<decltype(d)> dh;
  out.half[0] = hn::PromoteTo(DS16(), hn::LowerHalf(dh, v));
  out.half[1] = hn::PromoteTo(DS16(), hn::UpperHalf(dh, v));
#else
  out.half[0] = hn::PromoteTo(DS16(), v);
#endif
  return out;
}
template <int kBits>
HWY_INLINE S16 low_bits(const S16& a) {
  S16 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::And(a.half[h], hn::Set(DS16(), int16_t{(1 << kBits) - 1}));
  });
  return v;
}
template <int kBits>
HWY_INLINE S16 shift_right(const S16& a) {  // of numbers that are not negative
  S16 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    v.half[h] = hn::BitCast(
        DS16(), hn::ShiftRight<kBits>(hn::BitCast(DU16(), a.half[h])));
  });
  return v;
}

// sum + the products of pairs, in lanes of any order.
template <class D32, class V32, class V16>
HWY_INLINE V32 dot_pairs(D32 d, V16 a, V16 b, V32 sum, V32& high) {
#if FLASH_DOT_INSTRUCTION
  (void)d;
  (void)high;
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  return sum;
#else
  return hn::ReorderWidenMulAccumulate(d, a, b, sum, high);
#endif
}

// sum += the products of a's and *p's pairs, p's being sixteen.
HWY_INLINE void dot(const S16& a, const int16_t* p, I8* sum) {
#if FLASH_DOT_INSTRUCTION
  asm("vpdpwssd %2, %1, %0"
      : "+v"(sum->half[0].raw)
      : "v"(a.half[0].raw), "m"(*reinterpret_cast<const __m256i_u*>(p)));
#elif FLASH_TWO_HALVES
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    sum->half[0] = dot_pairs(DI8(),
                             a.half[h],
                             hn::LoadU(DS16(), p + h * 2 * kLanes8),
                             sum->half[0],
                             sum->half[1]);
  });
#else
  auto none = hn::Zero(DI8());
  sum->half[0] =
      dot_pairs(DI8(), a.half[0], hn::LoadU(DS16(), p), sum->half[0], none);
#endif
}

// The products of a's and *p's pairs: what dot() adds to nothing.
HWY_INLINE I8 first_dot(const S16& a, const int16_t* p) {
#if HWY_ARCH_X86
  I8 out;
  out.half[0] =
      hn::Vec<DI8>{_mm256_madd_epi16(a.half[0].raw, hn::LoadU(DS16(), p).raw)};
  return out;
#else
  I8 out = zero_i8();
  dot(a, p, &out);
  return out;
#endif
}

// In each block of four lanes: the sums of a's, b's, c's and e's four.
HWY_INLINE hn::Vec<DI8> sum_blocks(hn::Vec<DI8> a,
                                   hn::Vec<DI8> b,
                                   hn::Vec<DI8> c,
                                   hn::Vec<DI8> e) {
  const DI8 d;
  const hn::Repartition<int64_t, DI8> d64;
  const auto ab = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce = hn::BitCast(
      d64, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab, ce)),
                 hn::BitCast(d, hn::InterleaveUpper(d64, ab, ce)));
}

// Lane i: the sum of the eight lanes of v[i].
HWY_INLINE I8 sum_each(const I8* v) {
  I8 out;
#if FLASH_TWO_HALVES
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const I8* w = v + 4 * h;
    const auto both = [](const I8& a) FLASH_INLINE_LAMBDA {
      return hn::Add(a.half[0], a.half[1]);
    };
    out.half[h] = sum_blocks(both(w[0]), both(w[1]), both(w[2]), both(w[3]));
  });
#else
  const auto low =
      sum_blocks(v[0].half[0], v[1].half[0], v[2].half[0], v[3].half[0]);
  const auto high =
      sum_blocks(v[4].half[0], v[5].half[0], v[6].half[0], v[7].half[0]);
  out.half[0] = hn::Add(hn::ConcatLowerLower(DI8(), high, low),
                        hn::ConcatUpperUpper(DI8(), high, low));
#endif
  return out;
}

// ((0+4)+(2+6)) + ((1+5)+(3+7)).
HWY_INLINE float reduce8(const F8& v) {
  const hn::Full128<float> d4;
  const hn::Repartition<double, decltype(d4)> d2;
#if FLASH_TWO_HALVES
  const auto s = hn::Add(v.half[0], v.half[1]);
#else
  const auto s =
      hn::Add(hn::LowerHalf(d4, v.half[0]), hn::UpperHalf(d4, v.half[0]));
#endif
  const auto high = hn::BitCast(
      d4, hn::InterleaveUpper(d2, hn::BitCast(d2, s), hn::BitCast(d2, s)));
  const auto t = hn::Add(s, high);
  return hn::GetLane(hn::Add(t, hn::DupOdd(t)));
}

// ---- Eight stored numbers as floats; those from n on are 0 ----

template <size_t kBytes, class Load>
HWY_INLINE F8 load_first(const uint8_t* p, size_t n, const Load& load) {
  if (n == kChunkGroups) return load(p);
  alignas(32) uint8_t padded[kChunkGroups * kBytes] = {};
  std::memcpy(padded, p, n * kBytes);
  return load(padded);
}

HWY_INLINE F8 load_eight_f16(const uint8_t* p) {
  const hn::Rebind<uint16_t, DF8> d16;
  const hn::Rebind<hwy::float16_t, DF8> df16;
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const auto bits =
        hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p + h * 2 * kLanes8));
    v.half[h] = hn::PromoteTo(DF8(), hn::BitCast(df16, bits));
  });
  return v;
}
HWY_INLINE F8 load_eight_bf16(const uint8_t* p) {
  const hn::Rebind<uint16_t, DF8> d16;
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const auto bits =
        hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p + h * 2 * kLanes8));
    v.half[h] =
        hn::BitCast(DF8(), hn::ShiftLeft<16>(hn::PromoteTo(DU8(), bits)));
  });
  return v;
}
HWY_INLINE F8 load_eight_f32(const uint8_t* p) {
  return load_f8(reinterpret_cast<const float*>(p));
}
template <typename T>
HWY_INLINE F8 load_eight_bytes(const uint8_t* p) {
  const hn::Rebind<T, DI8> d8;
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const auto bytes =
        hn::LoadU(d8, reinterpret_cast<const T*>(p) + h * kLanes8);
    v.half[h] = hn::ConvertTo(DF8(), hn::PromoteTo(DI8(), bytes));
  });
  return v;
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_FIXED_LANES_INL_H_
