// SPDX-License-Identifier: MIT

// Integer codes of GGUF's block formats (layouts: ggml-common.h), with the
// interface of codes_mlx-inl.h. d and m below are float16 in the file. A chunk
// is eight blocks of 32, a super-block of eight groups, or half a super-block
// of sixteen groups.

#if defined(MLX_FLASH_KERNELS_CODES_GGUF_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_CODES_GGUF_INL_H_
#undef MLX_FLASH_KERNELS_CODES_GGUF_INL_H_
#else
#define MLX_FLASH_KERNELS_CODES_GGUF_INL_H_
#endif

#include "kernels/codes_mlx-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

// One row of blocks of kBytes bytes that hold kValues codes.
template <size_t kValues, size_t kBytes>
class Blocks {
 public:
  Blocks(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * (w.cols / kValues) * kBytes)) {}

 protected:
  HWY_INLINE const uint8_t* block(size_t b) const { return p_ + b * kBytes; }

 private:
  const uint8_t* p_;
};

// Blocks of 32 codes with d, and m if kM, at their beginning.
template <size_t kBytes, bool kM>
class Blocks32 : public Blocks<32, kBytes> {
 public:
  static constexpr bool kOffset = kM;
  static constexpr size_t kGroupBytes = kBytes;
  using Blocks<32, kBytes>::Blocks;
  static constexpr size_t group_size() { return 32; }

  HWY_INLINE void scales(size_t c, size_t n, F8* scale, F8* offset) const {
    *scale = halves(c, n, 0);
    if constexpr (kM) *offset = halves(c, n, 2);
  }

  HWY_INLINE const uint8_t* chunk(size_t c) const {
    return this->block(c * kChunkGroups);
  }

 protected:
  template <size_t kQ>
  static HWY_INLINE const uint8_t* group(const uint8_t* chunk) {
    return chunk + kQ * kBytes;
  }

 private:
#if HWY_ARCH_X86 && HWY_MAX_BYTES == 64
  // Two bytes from each of eight blocks that lie in two vectors.
  static constexpr bool kInTwoVectors = 3 * kBytes + 4 <= 64;
  static HWY_INLINE F8 halves_of_eight(const uint8_t* p) {
    struct Index {
      alignas(64) uint16_t lane[32];
      constexpr Index() : lane() {
        for (size_t i = 0; i < kChunkGroups; ++i) {
          lane[i] = static_cast<uint16_t>(i / 4 * 32 + i % 4 * kBytes / 2);
        }
      }
    };
    static constexpr Index kIndex;
    // Highway 1.0 has no instruction that picks lanes out of two vectors.
    const __m512i found =
        _mm512_permutex2var_epi16(_mm512_loadu_si512(p),
                                  _mm512_load_si512(kIndex.lane),
                                  _mm512_loadu_si512(p + 4 * kBytes));
    const hn::Full128<uint16_t> du16;
    const hn::Full128<hwy::float16_t> d16;
    const hn::Vec<decltype(du16)> first{_mm512_castsi512_si128(found)};
    F8 out;
    out.half[0] = hn::PromoteTo(DF8(), hn::BitCast(d16, first));
    return out;
  }
#endif

  // Two bytes from each of n blocks, put together in ordinary registers: a
  // vector load of what was just stored in parts would wait for it.
  HWY_INLINE F8 halves(size_t c, size_t n, size_t at) const {
#if HWY_ARCH_X86 && HWY_MAX_BYTES == 64
    if constexpr (kInTwoVectors) {
      if (n == kChunkGroups) {
        return halves_of_eight(this->block(c * kChunkGroups) + at);
      }
    }
#endif
    uint64_t words[2] = {0, 0};
    const uint8_t* p = this->block(c * kChunkGroups) + at;
    for (size_t i = 0; i < kChunkGroups; ++i) {
      if (i < n) {
        words[i / 4] |= uint64_t{load_as<uint16_t>(p + i * kBytes)}
                        << (i % 4 * 16);
      }
    }
    const hn::Full64<uint64_t> d1;
    const hn::Full128<uint64_t> d2;
    const auto both =
        hn::Combine(d2, hn::Set(d1, words[1]), hn::Set(d1, words[0]));
    F8 out;
#if FLASH_TWO_HALVES
    // As integers: NEON's halves of float16 vectors do not compile.
    const hn::Full128<uint16_t> du;
    const hn::Half<decltype(du)> duh;
    const hn::Full64<hwy::float16_t> dh;
    const auto v = hn::BitCast(du, both);
    const auto widen = [&](auto half) FLASH_INLINE_LAMBDA {
      return hn::PromoteTo(DF8(), hn::BitCast(dh, half));
    };
    out.half[0] = widen(hn::LowerHalf(duh, v));
    out.half[1] = widen(hn::UpperHalf(duh, v));
#else
    const hn::Full128<hwy::float16_t> d8;
    const auto v = hn::BitCast(d8, both);
    out.half[0] = hn::PromoteTo(DF8(), v);
#endif
    return out;
  }
};

// d, 16 bytes: values 0..15 in the low nibbles, 16..31 in the high ones.
struct Q4_0Codes : Blocks32<18, false> {
  static constexpr int kZero = 8;
  static constexpr UnitCodes kUnit = UnitCodes::kNibbles;
  static constexpr size_t unit_at(size_t u) { return u * 18 + 2; }
  static constexpr size_t unit_low(size_t u) { return u * 32; }
  static constexpr size_t unit_high(size_t u) { return u * 32 + 16; }
  using Blocks32::Blocks32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const S16 both = widen<uint8_t>(load_bytes(group<kQ>(chunk) + 2));
    sink(0, low_bits<4>(both));
    sink(16, shift_right<4>(both));
  }
};

// d, m, 16 bytes.
struct Q4_1Codes : Blocks32<20, true> {
  static constexpr int kZero = 0;
  static constexpr UnitCodes kUnit = UnitCodes::kNibbles;
  static constexpr size_t unit_at(size_t u) { return u * 20 + 4; }
  static constexpr size_t unit_low(size_t u) { return u * 32; }
  static constexpr size_t unit_high(size_t u) { return u * 32 + 16; }
  using Blocks32::Blocks32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const S16 both = widen<uint8_t>(load_bytes(group<kQ>(chunk) + 4));
    sink(0, low_bits<4>(both));
    sink(16, shift_right<4>(both));
  }
};

// 16 where bit i of the 16 at p is set, else 0, in byte i.
HWY_INLINE V16B fifth_bits(const uint8_t* p) {
  alignas(16) static constexpr uint8_t kByte[16] = {
      0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  alignas(16) static constexpr uint8_t kBit[16] = {
      1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const hn::Repartition<uint16_t, D16B> d16;
  const V16B both = hn::BitCast(D16B(), hn::Set(d16, load_as<uint16_t>(p)));
  const V16B mine = hn::TableLookupBytes(both, hn::Load(D16B(), kByte));
  const V16B bit = hn::Load(D16B(), kBit);
  return hn::And(hn::VecFromMask(D16B(), hn::Eq(hn::And(mine, bit), bit)),
                 set_bytes(16));
}

// Four bytes of fifth bits, then 16 bytes of nibbles.
template <class Sink>
HWY_INLINE void emit_five(const uint8_t* p, const Sink& sink) {
  const V16B q = load_bytes(p + 4);
  sink(0, widen<uint8_t>(hn::Or(low_nibble(q), fifth_bits(p))));
  sink(16, widen<uint8_t>(hn::Or(high_nibble(q), fifth_bits(p + 2))));
}

// d, 4 bytes of fifth bits, 16 bytes.
struct Q5_0Codes : Blocks32<22, false> {
  static constexpr int kZero = 16;
  using Blocks32::Blocks32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    emit_five(group<kQ>(chunk) + 2, sink);
  }
};

// d, m, 4 bytes of fifth bits, 16 bytes.
struct Q5_1Codes : Blocks32<24, true> {
  static constexpr int kZero = 0;
  using Blocks32::Blocks32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    emit_five(group<kQ>(chunk) + 4, sink);
  }
};

// d, 32 signed bytes.
struct Q8_0Codes : Blocks32<34, false> {
  static constexpr int kZero = 0;
  static constexpr UnitCodes kUnit = UnitCodes::kSignedBytes;
  static constexpr size_t unit_at(size_t u) {
    return u / 2 * 34 + 2 + u % 2 * 16;
  }
  static constexpr size_t unit_low(size_t u) { return u * 16; }
  static constexpr size_t unit_high(size_t u) { return u * 16; }
  using Blocks32::Blocks32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const uint8_t* p = group<kQ>(chunk) + 2;
    sink(0, widen<int8_t>(load_bytes(p)));
    sink(16, widen<int8_t>(load_bytes(p + 16)));
  }
};

// 2^(code - 128), as ggml has it: 255 is a number like the others.
HWY_INLINE F8 half_e8m0_of_ggml(const uint8_t* p) {
  const hn::Rebind<uint8_t, DU8> d8;
  const auto one = hn::Set(DU8(), 1u);
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const auto code = hn::PromoteTo(DU8(), hn::LoadU(d8, p + h * kLanes8));
    const auto denormal = hn::IfThenElse(hn::Eq(code, one),
                                         hn::Set(DU8(), 0x00400000u),
                                         hn::Set(DU8(), 0x00200000u));
    const auto normal = hn::ShiftLeft<23>(hn::Sub(code, one));
    v.half[h] =
        hn::BitCast(DF8(), hn::IfThenElse(hn::Gt(code, one), normal, denormal));
  });
  return v;
}

// Scale, 16 bytes of nibbles as in Q4_0.
struct GgufMxfp4Codes : Blocks<32, 17> {
  static constexpr int kZero = 0;
  static constexpr bool kOffset = false;
  static constexpr size_t kGroupBytes = 17;
  using Blocks::Blocks;
  static constexpr size_t group_size() { return 32; }

  HWY_INLINE const uint8_t* chunk(size_t c) const {
    return block(c * kChunkGroups);
  }
  // Put together in an ordinary register, as Blocks32 does.
  HWY_INLINE void scales(size_t c, size_t n, F8* scale, F8*) const {
    const uint8_t* p = chunk(c);
    uint64_t word = 0;
    for (size_t i = 0; i < kChunkGroups; ++i) {
      if (i < n) word |= uint64_t{p[i * kGroupBytes]} << (8 * i);
    }
    *scale = half_e8m0_of_ggml(reinterpret_cast<const uint8_t*>(&word));
  }
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const V16B both = load_bytes(chunk + kQ * kGroupBytes + 1);
    sink(0, widen<int8_t>(twice_e2m1(low_nibble(both))));
    sink(16, widen<int8_t>(twice_e2m1(high_nibble(both))));
  }
};

// ---- Super-blocks of 256 ----

// d * each of eight sub-block scales.
template <typename T>
HWY_INLINE F8 scale_products(uint16_t d, const uint8_t* scales) {
  return mul(set_f8(f16_to_float(d)), load_eight_bytes<T>(scales));
}
HWY_INLINE uint16_t minus_f16(uint16_t bits) {
  return static_cast<uint16_t>(bits ^ 0x8000);
}

// Super-blocks of eight groups of 32: d, dmin, eight 6-bit pairs of scale and
// minimum in 12 bytes.
template <size_t kBytes>
struct BlocksK32 : Blocks<256, kBytes> {
  static constexpr int kZero = 0;
  static constexpr bool kOffset = true;
  static constexpr size_t kGroupBytes = 0;
  using Blocks<256, kBytes>::Blocks;
  static constexpr size_t group_size() { return 32; }
  HWY_INLINE const uint8_t* chunk(size_t c) const { return this->block(c); }

  HWY_INLINE void scales(size_t c, size_t, F8* scale, F8* offset) const {
    const uint8_t* p = this->block(c);
    const auto w0 = load_as<uint32_t>(p + 4);
    const auto w1 = load_as<uint32_t>(p + 8);
    const auto w2 = load_as<uint32_t>(p + 12);
    const uint64_t scale_high = (w2 & 0x0F0F0F0Fu) | ((w0 >> 2) & 0x30303030u);
    const uint64_t min_high =
        ((w2 >> 4) & 0x0F0F0F0Fu) | ((w1 >> 2) & 0x30303030u);
    const uint64_t words[2] = {(w0 & 0x3F3F3F3Fu) | scale_high << 32,
                               (w1 & 0x3F3F3F3Fu) | min_high << 32};
    const auto* bytes = reinterpret_cast<const uint8_t*>(words);
    *scale = scale_products<uint8_t>(load_as<uint16_t>(p), bytes);
    // -(dmin * m) == (-dmin) * m.
    *offset =
        scale_products<uint8_t>(minus_f16(load_as<uint16_t>(p + 2)), bytes + 8);
  }
};

// Then 128 bytes: 32 for each 64 values, the first 32 in low nibbles.
struct Q4_KCodes : BlocksK32<144> {
  static constexpr UnitCodes kUnit = UnitCodes::kNibbles;
  static constexpr size_t unit_at(size_t u) { return 16 + u * 16; }
  static constexpr size_t unit_low(size_t u) { return u / 2 * 64 + u % 2 * 16; }
  static constexpr size_t unit_high(size_t u) { return unit_low(u) + 32; }
  using BlocksK32::BlocksK32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const uint8_t* p = chunk + 16 + kQ / 2 * 32;
    for (size_t k = 0; k < 32; k += 16) {
      const S16 both = widen<uint8_t>(load_bytes(p + k));
      if constexpr (kQ % 2 == 0) {
        sink(k, low_bits<4>(both));
      } else {
        sink(k, shift_right<4>(both));
      }
    }
  }
};

// q | value where `bit` is set in `bytes`.
HWY_INLINE V16B with_bit(V16B q, V16B bytes, int bit, int value) {
  const V16B mask = set_bytes(bit);
  const auto is_set = hn::Eq(hn::And(bytes, mask), mask);
  return hn::Or(q, hn::IfThenElseZero(is_set, set_bytes(value)));
}

// Then 32 bytes of fifth bits, 128 bytes.
struct Q5_KCodes : BlocksK32<176> {
  using BlocksK32::BlocksK32;
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    for (size_t k = 0; k < 32; k += 16) {
      const V16B both = load_bytes(chunk + 48 + kQ / 2 * 32 + k);
      const V16B q = kQ % 2 == 0 ? low_nibble(both) : high_nibble(both);
      const V16B fifth = load_bytes(chunk + 16 + k);
      sink(k, widen<uint8_t>(with_bit(q, fifth, 1 << kQ, 16)));
    }
  }
};

// Bits kFirst and kFirst + 1 of each byte.
template <int kFirst>
HWY_INLINE V16B bit_pair(V16B v) {
  if constexpr (kFirst > 0) v = hn::ShiftRight<kFirst>(v);
  return hn::And(v, set_bytes(3));
}

// Super-blocks of sixteen groups of 16: a chunk is a half, 128 values.
template <size_t kBytes>
struct BlocksK16 : Blocks<256, kBytes> {
  static constexpr size_t kGroupBytes = 0;
  using Blocks<256, kBytes>::Blocks;
  static constexpr size_t group_size() { return 16; }
  // Of both halves.
  HWY_INLINE const uint8_t* chunk(size_t c) const { return this->block(c / 2); }
};

// 16 bytes (scale, minimum in nibbles), 64 bytes of bit pairs, d, dmin.
struct Q2_KCodes : BlocksK16<84> {
  static constexpr int kZero = 0;
  static constexpr bool kOffset = true;
  using BlocksK16::BlocksK16;

  HWY_INLINE void scales(size_t c, size_t, F8* scale, F8* offset) const {
    const uint8_t* p = this->block(c / 2);
    const auto packed = load_as<uint64_t>(p + c % 2 * 8);
    constexpr uint64_t kLow = 0x0F0F0F0F0F0F0F0Full;
    const uint64_t words[2] = {packed & kLow, (packed >> 4) & kLow};
    const auto* bytes = reinterpret_cast<const uint8_t*>(words);
    *scale = scale_products<uint8_t>(load_as<uint16_t>(p + 80), bytes);
    *offset = scale_products<uint8_t>(minus_f16(load_as<uint16_t>(p + 82)),
                                      bytes + 8);
  }
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk,
                               size_t c,
                               const Sink& sink) {
    const uint8_t* p = chunk + 16 + c % 2 * 32 + kQ % 2 * 16;
    sink(0, widen<uint8_t>(bit_pair<kQ / 2 * 2>(load_bytes(p))));
  }
};

// 32 bytes of third bits, 64 bytes of bit pairs, 12 bytes of scales, d.
struct Q3_KCodes : BlocksK16<110> {
  static constexpr int kZero = 4;
  static constexpr bool kOffset = false;
  using BlocksK16::BlocksK16;

  // Sixteen 6-bit scales less 32, times d.
  HWY_INLINE void scales(size_t c, size_t, F8* scale, F8*) const {
    const uint8_t* p = this->block(c / 2);
    const size_t half = c % 2;
    const uint64_t low = load_as<uint64_t>(p + 96) >> (4 * half);
    const uint32_t pairs = load_as<uint32_t>(p + 104) >> (4 * half);
    const uint64_t high =
        (pairs & 0x03030303u) | uint64_t{(pairs >> 2) & 0x03030303u} << 32;
    const uint64_t word = (low & 0x0F0F0F0F0F0F0F0Full) | high << 4;
    const F8 six =
        load_eight_bytes<uint8_t>(reinterpret_cast<const uint8_t*>(&word));
    const F8 d = set_f8(f16_to_float(load_as<uint16_t>(p + 108)));
    for_halves([&](auto h) FLASH_INLINE_LAMBDA {
      const auto centred = hn::Sub(six.half[h], hn::Set(DF8(), 32.0f));
      scale->half[h] = hn::Mul(d.half[h], centred);
    });
  }
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk,
                               size_t c,
                               const Sink& sink) {
    const V16B third = load_bytes(chunk + kQ % 2 * 16);
    const V16B q = load_bytes(chunk + 32 + c % 2 * 32 + kQ % 2 * 16);
    const int bit = 1 << (c % 2 * 4 + kQ / 2);
    sink(0, widen<uint8_t>(with_bit(bit_pair<kQ / 2 * 2>(q), third, bit, 4)));
  }
};

// 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales, d.
struct Q6_KCodes : BlocksK16<210> {
  static constexpr int kZero = 32;
  static constexpr bool kOffset = false;
  using BlocksK16::BlocksK16;

  HWY_INLINE void scales(size_t c, size_t, F8* scale, F8*) const {
    const uint8_t* p = this->block(c / 2);
    *scale =
        scale_products<int8_t>(load_as<uint16_t>(p + 208), p + 192 + c % 2 * 8);
  }
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk,
                               size_t c,
                               const Sink& sink) {
    const V16B both = load_bytes(chunk + c % 2 * 64 + kQ % 4 * 16);
    const V16B pairs = load_bytes(chunk + 128 + c % 2 * 32 + kQ % 2 * 16);
    const V16B low = kQ < 4 ? low_nibble(both) : high_nibble(both);
    const V16B high = bit_pair<kQ / 2 * 2>(pairs);
    sink(0, widen<uint8_t>(hn::Or(low, hn::ShiftLeft<4>(high))));
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_CODES_GGUF_INL_H_
