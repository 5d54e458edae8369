// SPDX-License-Identifier: MIT

// Decoders of GGUF's block formats (layouts: ggml-common.h), with the interface
// of decode_mlx-inl.h. d and m below are float16 in the file.

#if defined(MLX_FLASH_KERNELS_DECODE_GGUF_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_DECODE_GGUF_INL_H_
#undef MLX_FLASH_KERNELS_DECODE_GGUF_INL_H_
#else
#define MLX_FLASH_KERNELS_DECODE_GGUF_INL_H_
#endif

#include "kernels/decode_mlx-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

using D16B = hn::Full128<uint8_t>;  // sixteen bytes, one per value
using V16B = hn::Vec<D16B>;

HWY_INLINE V16B load_bytes(const uint8_t* p) {
  return hn::LoadU(D16B(), p);
}
HWY_INLINE V16B set_bytes(int value) {
  return hn::Set(D16B(), static_cast<uint8_t>(value));
}
HWY_INLINE V16B high_nibble(V16B v) {
  return hn::And(hn::ShiftRight<4>(v), set_bytes(15));
}
HWY_INLINE V16B low_nibble(V16B v) {
  return hn::And(v, set_bytes(15));
}

// Part P of sixteen bytes as int32; T is uint8_t or int8_t.
template <size_t P, typename T>
HWY_INLINE VI widen_ints(V16B bytes) {
  const hn::Full128<T> d;
  const auto v = hn::BitCast(d, bytes);
  VI wide;
#if HWY_MAX_BYTES == 64
  wide = hn::PromoteTo(DI(), v);
#elif HWY_MAX_BYTES == 32
  const hn::Half<decltype(d)> dh;
  wide =
      hn::PromoteTo(DI(), P == 0 ? hn::LowerHalf(dh, v) : hn::UpperHalf(dh, v));
#else
  const hn::Half<decltype(d)> dh;
  const hn::Half<decltype(dh)> dq;
  const auto half = P < 2 ? hn::LowerHalf(dh, v) : hn::UpperHalf(dh, v);
  const hn::Repartition<uint32_t, decltype(dh)> d32;
  const auto words = hn::BitCast(d32, half);
  const auto quarter =
      P % 2 == 0 ? half : hn::BitCast(dh, hn::Shuffle2301(words));
  wide = hn::PromoteTo(DI(), hn::LowerHalf(dq, quarter));
#endif
  return wide;
}

// The same as float32, and as bits.
template <size_t P, typename T = uint8_t>
HWY_INLINE VF widen(V16B bytes) {
  return hn::ConvertTo(DF(), widen_ints<P, T>(bytes));
}
template <size_t P>
HWY_INLINE VU widen_bits(V16B bytes) {
  return hn::BitCast(DU(), widen_ints<P, uint8_t>(bytes));
}

// Sixteen values fma(scale, q, offset).
template <class Sink>
HWY_INLINE void emit_affine(
    const Sink& sink, size_t k, V16B q, VF scale, VF offset) {
  emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
    return hn::MulAdd(scale, widen<i>(q), offset);
  });
}

// Sixteen values scale * (q - zero).
template <class Sink>
HWY_INLINE void emit_signed(
    const Sink& sink, size_t k, V16B q, VF scale, int zero) {
  const V16B centred = hn::Sub(q, set_bytes(zero));
  emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
    return hn::Mul(scale, widen<i, int8_t>(centred));
  });
}

// fma(scale, q, offset) for the nibbles q of sixteen bytes.
class AffineNibbles {
 public:
  HWY_INLINE AffineNibbles(VF scale, VF offset)
      : scale_(scale), offset_(offset), table_(scale, offset) {}

  template <class Sink>
  HWY_INLINE void low(const Sink& sink, size_t k, V16B bytes) const {
    if constexpr (kTables) {
      emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
        return table_.of(widen_bits<i>(bytes));
      });
    } else {
      emit_affine(sink, k, low_nibble(bytes), scale_, offset_);
    }
  }
  template <class Sink>
  HWY_INLINE void high(const Sink& sink, size_t k, V16B bytes) const {
    if constexpr (kTables) {
      emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
        return table_.of(hn::ShiftRight<4>(widen_bits<i>(bytes)));
      });
    } else {
      emit_affine(sink, k, high_nibble(bytes), scale_, offset_);
    }
  }

 private:
  VF scale_;
  VF offset_;
  AffineFields<4> table_;
};

// One row of blocks of kBytes bytes.
template <size_t kValues, size_t kBytes>
class BlockRow {
 public:
  BlockRow(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * (w.cols / kValues) * kBytes)) {}
  static constexpr size_t group_size() { return kValues; }

 protected:
  HWY_INLINE const uint8_t* block(size_t g) const { return p_ + g * kBytes; }

 private:
  const uint8_t* p_;
};

// d, 16 bytes: values 0..15 in the low nibbles, 16..31 in the high ones.
struct Q4_0 : BlockRow<32, 18> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    const VF d = broadcast_f16(p);
    const V16B q = load_bytes(p + 2);
    if constexpr (kTables) {
      const VF table =
          hn::Mul(d, hn::Sub(hn::Iota(DF(), 0.0f), hn::Set(DF(), 8.0f)));
      emit16(sink, 0, [&](auto i) FLASH_INLINE_LAMBDA {
        return look_up(table, widen_bits<i>(q));
      });
      emit16(sink, 16, [&](auto i) FLASH_INLINE_LAMBDA {
        return look_up(table, hn::ShiftRight<4>(widen_bits<i>(q)));
      });
    } else {
      emit_signed(sink, 0, low_nibble(q), d, 8);
      emit_signed(sink, 16, high_nibble(q), d, 8);
    }
  }
};

// d, m, 16 bytes.
struct Q4_1 : BlockRow<32, 20> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    const AffineNibbles values(broadcast_f16(p), broadcast_f16(p + 2));
    const V16B q = load_bytes(p + 4);
    values.low(sink, 0, q);
    values.high(sink, 16, q);
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

// d, 4 bytes of fifth bits, 16 bytes.
struct Q5_0 : BlockRow<32, 22> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    const VF d = broadcast_f16(p);
    const V16B q = load_bytes(p + 6);
    emit_signed(sink, 0, hn::Or(low_nibble(q), fifth_bits(p + 2)), d, 16);
    emit_signed(sink, 16, hn::Or(high_nibble(q), fifth_bits(p + 4)), d, 16);
  }
};

// d, m, 4 bytes of fifth bits, 16 bytes.
struct Q5_1 : BlockRow<32, 24> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    const VF d = broadcast_f16(p);
    const VF m = broadcast_f16(p + 2);
    const V16B q = load_bytes(p + 8);
    emit_affine(sink, 0, hn::Or(low_nibble(q), fifth_bits(p + 4)), d, m);
    emit_affine(sink, 16, hn::Or(high_nibble(q), fifth_bits(p + 6)), d, m);
  }
};

// d, 32 signed bytes.
struct Q8_0 : BlockRow<32, 34> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const hn::Rebind<int8_t, DF> d8;
    const uint8_t* p = block(g);
    const VF d = broadcast_f16(p);
    const auto* q = reinterpret_cast<const int8_t*>(p + 2);
    for (size_t k = 0; k < 32; k += 16) {
      emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
        const auto wide = hn::PromoteTo(DI(), hn::LoadU(d8, q + k + i * kN));
        return hn::Mul(d, hn::ConvertTo(DF(), wide));
      });
    }
  }
};

// ---- Super-blocks of 256 ----

// d * scale[i] for n <= 16 sub-block scales of type T, as floats.
template <size_t n, typename T>
HWY_INLINE void scale_products(uint16_t d, const T* scales, float* out) {
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<T, decltype(df)> d8;
  const auto vd = hn::Set(df, f16_to_float(d));
  for (size_t i = 0; i < n; i += hn::Lanes(df)) {
    const auto s =
        hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, scales + i)));
    hn::StoreU(hn::Mul(vd, s), df, out + i);
  }
}

// Scales and minimums of Q4_K and Q5_K: eight 6-bit pairs in 12 bytes.
struct ScalesK4 {
  float scale[8];
  float minus_min[8];

  explicit HWY_INLINE ScalesK4(const uint8_t* p) {
    const auto a = load_as<uint32_t>(p + 4);
    const auto b = load_as<uint32_t>(p + 8);
    const auto c = load_as<uint32_t>(p + 12);
    uint32_t words[4];
    words[0] = a & 0x3F3F3F3Fu;
    words[1] = (c & 0x0F0F0F0Fu) | ((a >> 2) & 0x30303030u);
    words[2] = b & 0x3F3F3F3Fu;
    words[3] = ((c >> 4) & 0x0F0F0F0Fu) | ((b >> 2) & 0x30303030u);
    uint8_t bytes[16];
    std::memcpy(bytes, words, 16);
    scale_products<8>(load_as<uint16_t>(p), bytes, scale);
    // -(dmin * m) == (-dmin) * m: flip the sign bit of dmin.
    const auto minus = static_cast<uint16_t>(load_as<uint16_t>(p + 2) ^ 0x8000);
    scale_products<8>(minus, bytes + 8, minus_min);
  }
};

// d, dmin, 12 bytes of scales, 128 bytes: for each 64 values 32 bytes.
struct Q4_K : BlockRow<256, 144> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    const ScalesK4 s(p);
    for (size_t j = 0; j < 4; ++j) {
      const V16B q0 = load_bytes(p + 16 + 32 * j);
      const V16B q1 = load_bytes(p + 32 + 32 * j);
      const AffineNibbles first(hn::Set(DF(), s.scale[2 * j]),
                                hn::Set(DF(), s.minus_min[2 * j]));
      first.low(sink, 64 * j, q0);
      first.low(sink, 64 * j + 16, q1);
      const AffineNibbles second(hn::Set(DF(), s.scale[2 * j + 1]),
                                 hn::Set(DF(), s.minus_min[2 * j + 1]));
      second.high(sink, 64 * j + 32, q0);
      second.high(sink, 64 * j + 48, q1);
    }
  }
};

// q | value where `bit` is set in `bytes`.
HWY_INLINE V16B with_bit(V16B q, V16B bytes, int bit, int value) {
  const V16B mask = set_bytes(bit);
  const auto is_set = hn::Eq(hn::And(bytes, mask), mask);
  return hn::Or(q, hn::IfThenElseZero(is_set, set_bytes(value)));
}

// d, dmin, 12 bytes of scales, 32 bytes of fifth bits, 128 bytes.
struct Q5_K : BlockRow<256, 176> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    const ScalesK4 s(p);
    const V16B h0 = load_bytes(p + 16);
    const V16B h1 = load_bytes(p + 32);
    for (size_t j = 0; j < 4; ++j) {
      const V16B q0 = load_bytes(p + 48 + 32 * j);
      const V16B q1 = load_bytes(p + 64 + 32 * j);
      const int bit = 1 << (2 * j);
      const size_t k = 64 * j;
      VF d = hn::Set(DF(), s.scale[2 * j]);
      VF m = hn::Set(DF(), s.minus_min[2 * j]);
      emit_affine(sink, k, with_bit(low_nibble(q0), h0, bit, 16), d, m);
      emit_affine(sink, k + 16, with_bit(low_nibble(q1), h1, bit, 16), d, m);
      d = hn::Set(DF(), s.scale[2 * j + 1]);
      m = hn::Set(DF(), s.minus_min[2 * j + 1]);
      emit_affine(
          sink, k + 32, with_bit(high_nibble(q0), h0, 2 * bit, 16), d, m);
      emit_affine(
          sink, k + 48, with_bit(high_nibble(q1), h1, 2 * bit, 16), d, m);
    }
  }
};

// 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 signed scales, d.
struct Q6_K : BlockRow<256, 210> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    float scale[16];
    scale_products<16>(load_as<uint16_t>(p + 208),
                       reinterpret_cast<const int8_t*>(p + 192),
                       scale);
    for (size_t n = 0; n < 2; ++n) {
      const uint8_t* low = p + 64 * n;
      const float* s = scale + 8 * n;
      const size_t k = 128 * n;
      const V16B a0 = load_bytes(low);
      const V16B a1 = load_bytes(low + 16);
      const V16B b0 = load_bytes(low + 32);
      const V16B b1 = load_bytes(low + 48);
      const V16B h0 = load_bytes(p + 128 + 32 * n);
      const V16B h1 = load_bytes(p + 144 + 32 * n);
      emit(sink, k, low_nibble(a0), hn::ShiftLeft<4>(h0), s[0]);
      emit(sink, k + 16, low_nibble(a1), hn::ShiftLeft<4>(h1), s[1]);
      emit(sink, k + 32, low_nibble(b0), hn::ShiftLeft<2>(h0), s[2]);
      emit(sink, k + 48, low_nibble(b1), hn::ShiftLeft<2>(h1), s[3]);
      emit(sink, k + 64, high_nibble(a0), h0, s[4]);
      emit(sink, k + 80, high_nibble(a1), h1, s[5]);
      emit(sink, k + 96, high_nibble(b0), hn::ShiftRight<2>(h0), s[6]);
      emit(sink, k + 112, high_nibble(b1), hn::ShiftRight<2>(h1), s[7]);
    }
  }

 private:
  // `high` has the upper two bits at 0x30.
  template <class Sink>
  static HWY_INLINE void emit(
      const Sink& sink, size_t k, V16B low, V16B high, float scale) {
    const V16B q = hn::Or(low, hn::And(high, set_bytes(0x30)));
    emit_signed(sink, k, q, hn::Set(DF(), scale), 32);
  }
};

// Bits 2j and 2j + 1 of each byte.
HWY_INLINE V16B bit_pair(V16B v, size_t j) {
  const V16B three = set_bytes(3);
  switch (j) {
    case 0:
      return hn::And(v, three);
    case 1:
      return hn::And(hn::ShiftRight<2>(v), three);
    case 2:
      return hn::And(hn::ShiftRight<4>(v), three);
    default:
      return hn::And(hn::ShiftRight<6>(v), three);
  }
}

// 16 bytes (scale, minimum in nibbles), 64 bytes of bit pairs, d, dmin.
struct Q2_K : BlockRow<256, 84> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    alignas(16) uint8_t bytes[16];
    float scale[16];
    float minus_min[16];
    const V16B packed = load_bytes(p);
    hn::Store(low_nibble(packed), D16B(), bytes);
    scale_products<16>(load_as<uint16_t>(p + 80), bytes, scale);
    hn::Store(high_nibble(packed), D16B(), bytes);
    const auto minus =
        static_cast<uint16_t>(load_as<uint16_t>(p + 82) ^ 0x8000);
    scale_products<16>(minus, bytes, minus_min);
    for (size_t n = 0; n < 2; ++n) {
      for (size_t j = 0; j < 8; ++j) {
        const V16B q = load_bytes(p + 16 + 32 * n + 16 * (j % 2));
        const size_t i = 8 * n + j;
        emit_affine(sink,
                    16 * i,
                    bit_pair(q, j / 2),
                    hn::Set(DF(), scale[i]),
                    hn::Set(DF(), minus_min[i]));
      }
    }
  }
};

// 32 bytes of third bits, 64 bytes of bit pairs, 12 bytes of scales, d.
struct Q3_K : BlockRow<256, 110> {
  using BlockRow::BlockRow;
  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = block(g);
    float scale[16];
    load_scales(p, scale);
    for (size_t n = 0; n < 2; ++n) {
      for (size_t j = 0; j < 8; ++j) {
        const V16B third = load_bytes(p + 16 * (j % 2));
        const V16B q = load_bytes(p + 32 + 32 * n + 16 * (j % 2));
        const size_t i = 8 * n + j;
        const V16B value =
            with_bit(bit_pair(q, j / 2), third, 1 << (4 * n + j / 2), 4);
        emit_signed(sink, 16 * i, value, hn::Set(DF(), scale[i]), 4);
      }
    }
  }

 private:
  // Sixteen 6-bit scales less 32, times d.
  static HWY_INLINE void load_scales(const uint8_t* p, float* scale) {
    const auto a = load_as<uint32_t>(p + 96);
    const auto b = load_as<uint32_t>(p + 100);
    const auto c = load_as<uint32_t>(p + 104);
    constexpr uint32_t kLow = 0x0F0F0F0Fu;
    constexpr uint32_t kTwo = 0x03030303u;
    const uint32_t words[4] = {(a & kLow) | ((c & kTwo) << 4),
                               (b & kLow) | (((c >> 2) & kTwo) << 4),
                               ((a >> 4) & kLow) | (((c >> 4) & kTwo) << 4),
                               ((b >> 4) & kLow) | (((c >> 6) & kTwo) << 4)};
    alignas(16) int8_t bytes[16];
    const auto packed = load_bytes(reinterpret_cast<const uint8_t*>(words));
    hn::Store(hn::Sub(packed, set_bytes(32)),
              D16B(),
              reinterpret_cast<uint8_t*>(bytes));
    scale_products<16>(load_as<uint16_t>(p + 108), bytes, scale);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_DECODE_GGUF_INL_H_
