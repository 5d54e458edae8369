// SPDX-License-Identifier: MIT

// Decoders of the dense formats and of MLX's split formats.
//
// A decoder is one row of a matrix. group(g, sink) decodes group g of
// group_size() values and calls sink(Part<P>(), k, vector) for each vector of
// values, in order: `vector` holds the values k, ..., k + kN - 1 of the group
// and k % 16 == P * kN. No byte outside the row is read.

#if defined(MLX_FLASH_KERNELS_DECODE_MLX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_DECODE_MLX_INL_H_
#undef MLX_FLASH_KERNELS_DECODE_MLX_INL_H_
#else
#define MLX_FLASH_KERNELS_DECODE_MLX_INL_H_
#endif

#include <limits>

#include "kernels/lanes-inl.h"
#include "kernels/matmul.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE const uint8_t* bytes_of(const std::byte* p, size_t offset) {
  return reinterpret_cast<const uint8_t*>(p) + offset;
}

// Sixteen values from k on: value(Part<P>()) yields each vector of them.
template <class Sink, class Value>
HWY_INLINE void emit16(const Sink& sink, size_t k, const Value& value) {
  for_parts([&](auto p) FLASH_INLINE_LAMBDA { sink(p, k + p * kN, value(p)); });
}

// ---- Dense ----

template <size_t kBytes, VF (*kLoad)(const uint8_t*)>
class Dense {
 public:
  static constexpr size_t kValueBytes = kBytes;
  Dense(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols * kBytes)) {}
  static constexpr size_t group_size() { return 16; }

  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const uint8_t* p = p_ + g * 16 * kBytes;
    emit16(sink, 0, [&](auto i) FLASH_INLINE_LAMBDA {
      return kLoad(p + i * kN * kBytes);
    });
  }

  // The last n < 16 values of a row of `cols`, then -0: the one value that
  // leaves an accumulator as it is, fma(-0, +0, acc) == acc, -0 included.
  HWY_INLINE Acc16 tail(size_t cols, size_t n) const {
    alignas(64) uint8_t raw[16 * kBytes] = {};
    alignas(64) float values[16];
    std::memcpy(raw, p_ + (cols - n) * kBytes, n * kBytes);
    for_parts([&](auto i) FLASH_INLINE_LAMBDA {
      hn::Store(kLoad(raw + i * kN * kBytes), DF(), values + i * kN);
    });
    for (size_t i = n; i < 16; ++i) values[i] = -0.0f;
    return load16(values);
  }

 private:
  const uint8_t* p_;
};

using DenseF32 = Dense<4, load_f32>;
using DenseF16 = Dense<2, load_f16>;
using DenseBF16 = Dense<2, load_bf16>;

// ---- Fields of a little-endian bit stream ----

// Lanes of part P: (byte shuffle, right shift) that bring field lane % 8 of the
// eight fields in a 64-bit word to the bottom of its 32-bit lane.
template <int kBits>
struct FieldTables {
  alignas(64) uint8_t shuffle[64];
  alignas(64) uint32_t shift[16];
  constexpr FieldTables() : shuffle(), shift() {
    for (unsigned i = 0; i < 16; ++i) {
      const unsigned bit = i % 8 * kBits;
      // The word is in each half of a 16-byte block: use the first.
      for (unsigned j = 0; j < 4; ++j) {
        const unsigned byte = bit / 8 + j;
        shuffle[4 * i + j] = static_cast<uint8_t>(byte < 8 ? byte : 0x80);
      }
      shift[i] = bit % 8;
    }
  }
};

// Where lane i of sixteen finds its field when its word has 32 bits or fewer.
template <int kBits>
struct ShiftTable {
  alignas(64) uint32_t shift[16];
  constexpr ShiftTable() : shift() {
    const unsigned per_word = kBits == 2 ? 16 : 8;
    for (unsigned i = 0; i < 16; ++i) shift[i] = i % per_word * kBits;
  }
};

// Two words, the first in lanes 0..7 and the second in lanes 8..15 of sixteen.
template <size_t P>
HWY_INLINE VU spread(uint32_t w0, uint32_t w1) {
  if constexpr (kN == 16) {
    return hn::IfThenElse(
        hn::FirstN(DU(), 8), hn::Set(DU(), w0), hn::Set(DU(), w1));
  } else {
    return hn::Set(DU(), P * kN < 8 ? w0 : w1);
  }
}

// Fields of `kBits` bits, lowest first, from the 2 * kBits bytes at p: those of
// part P, with whatever stands above them in the word when kBits < 8.
template <int kBits, size_t P>
HWY_INLINE VU raw_fields(const uint8_t* p) {
  if constexpr (kBits == 8) {
    const hn::Rebind<uint8_t, DU> d8;
    return hn::PromoteTo(DU(), hn::LoadU(d8, p + P * kN));
  } else if constexpr (kBits <= 4) {
    static constexpr ShiftTable<kBits> kTable;
    const VU shift = hn::Load(DU(), kTable.shift + P * kN);
    if constexpr (kBits == 2) {
      return hn::Shr(hn::Set(DU(), load_as<uint32_t>(p)), shift);
    } else if constexpr (kBits == 3) {
      return hn::Shr(
          spread<P>(load_as<uint32_t>(p), load_as<uint32_t>(p + 2) >> 8),
          shift);
    } else {
      return hn::Shr(spread<P>(load_as<uint32_t>(p), load_as<uint32_t>(p + 4)),
                     shift);
    }
  } else {
    static constexpr FieldTables<kBits> kTable;
    const hn::Repartition<uint64_t, DU> d64;
    const hn::Repartition<uint8_t, DU> d8;
    const uint64_t w0 = load_as<uint64_t>(p);
    const uint64_t w1 =
        load_as<uint64_t>(p + 2 * kBits - 8) >> (8 * (8 - kBits));
    hn::Vec<decltype(d64)> words;
    if constexpr (kN == 16) {
      words = hn::IfThenElse(
          hn::FirstN(d64, 4), hn::Set(d64, w0), hn::Set(d64, w1));
    } else {
      words = hn::Set(d64, P * kN < 8 ? w0 : w1);
    }
    const auto shuffle = hn::Load(d8, kTable.shuffle + 4 * P * kN);
    const auto found = hn::TableLookupBytesOr0(hn::BitCast(d8, words), shuffle);
    return hn::Shr(hn::BitCast(DU(), found),
                   hn::Load(DU(), kTable.shift + P * kN));
  }
}

// Where a vector has sixteen lanes it is itself a table of the sixteen values a
// nibble can have: one instruction instead of mask, conversion and arithmetic.
constexpr bool kTables = kN == 16;

// Entry `index % 16` of the table. REQUIRES: kTables.
HWY_INLINE VF look_up(VF table, VU index) {
#if HWY_MAX_BYTES == 64
#if HWY_IS_DEBUG_BUILD
  index = hn::And(index, hn::Set(DU(), 15));  // Highway checks; hardware masks
#endif
  return hn::TableLookupLanes(table, hn::IndicesFromVec(DF(), index));
#else
  (void)index;
  return table;
#endif
}

// The low kBits bits of each lane as numbers.
template <int kBits>
HWY_INLINE VF field_values(VU raw) {
  if constexpr (kBits < 8) {
    raw = hn::And(raw, hn::Set(DU(), (1u << kBits) - 1));
  }
  return hn::ConvertTo(DF(), hn::BitCast(DI(), raw));
}

// ---- MLX affine: w = fma(scale, q, bias) ----

// fma(scale, q, offset) for the kBits low bits q of a lane.
template <int kBits>
class AffineFields {
 public:
  HWY_INLINE AffineFields(VF scale, VF offset)
      : scale_(scale), offset_(offset) {
    if constexpr (kBits == 4 && kTables) {
      scale_ = hn::MulAdd(scale, hn::Iota(DF(), 0.0f), offset);  // the table
    }
  }
  HWY_INLINE VF of(VU raw) const {
    if constexpr (kBits == 4 && kTables) {
      return look_up(scale_, raw);
    } else {
      return hn::MulAdd(scale_, field_values<kBits>(raw), offset_);
    }
  }

 private:
  VF scale_;
  VF offset_;
};

struct ScaleF32 {
  static constexpr size_t kBytes = 4;
  static HWY_INLINE VF load(const uint8_t* p) { return broadcast_f32(p); }
};
struct ScaleF16 {
  static constexpr size_t kBytes = 2;
  static HWY_INLINE VF load(const uint8_t* p) { return broadcast_f16(p); }
};
struct ScaleBF16 {
  static constexpr size_t kBytes = 2;
  static HWY_INLINE VF load(const uint8_t* p) { return broadcast_bf16(p); }
};

template <int kBits, class Scale>
class Affine {
 public:
  Affine(const WeightRows& w, size_t r)
      : group_size_(w.format.group_size),
        p_(bytes_of(w.weight, r * (w.cols * kBits / 8))),
        scales_(bytes_of(w.scales, r * (w.cols / group_size_) * Scale::kBytes)),
        biases_(
            bytes_of(w.biases, r * (w.cols / group_size_) * Scale::kBytes)) {}
  size_t group_size() const { return group_size_; }

  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const AffineFields<kBits> values(Scale::load(scales_ + g * Scale::kBytes),
                                     Scale::load(biases_ + g * Scale::kBytes));
    const uint8_t* p = p_ + g * (group_size_ * kBits / 8);
    for (size_t k = 0; k < group_size_; k += 32, p += 4 * kBits) {
      for (size_t i = 0; i < 2; ++i) {
        emit16(sink, k + 16 * i, [&](auto part) FLASH_INLINE_LAMBDA {
          return values.of(raw_fields<kBits, part>(p + i * 2 * kBits));
        });
      }
    }
  }

 private:
  size_t group_size_;
  const uint8_t* p_;
  const uint8_t* scales_;
  const uint8_t* biases_;
};

// ---- Floating-point codes (OCP MX, NVFP4) ----

// e2m1 by code: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives (-0 included).
// All are bfloat16 values, so two byte tables hold them.
HWY_INLINE hn::Vec<hn::Full128<uint8_t>> low_half(
    hn::Vec<hn::Full128<uint8_t>> v) {
  return hn::And(v, hn::Set(hn::Full128<uint8_t>(), uint8_t{15}));
}

// Sixteen numbers e2m1(code) * scale.
class E2m1 {
 public:
  explicit HWY_INLINE E2m1(VF scale) : scale_(scale) {
    if constexpr (kTables) {
      alignas(64) static constexpr float kValues[16] = {0.0f,
                                                        0.5f,
                                                        1.0f,
                                                        1.5f,
                                                        2.0f,
                                                        3.0f,
                                                        4.0f,
                                                        6.0f,
                                                        -0.0f,
                                                        -0.5f,
                                                        -1.0f,
                                                        -1.5f,
                                                        -2.0f,
                                                        -3.0f,
                                                        -4.0f,
                                                        -6.0f};
      scale_ = hn::Mul(hn::Load(DF(), kValues), scale);  // the table
    }
  }

  // From the 8 bytes at p, low nibble first.
  template <class Sink>
  HWY_INLINE void emit(const Sink& sink, size_t k, const uint8_t* p) const;

 private:
  VF scale_;
};

struct Codes16 {
  hn::Vec<hn::Full128<uint16_t>> half[2];  // bfloat16 bits of 8 values each
};

// The sixteen e2m1 codes in the 8 bytes at p, low nibble first.
HWY_INLINE Codes16 e2m1_codes(const uint8_t* p) {
  alignas(16) static constexpr uint8_t kLow[16] = {0,
                                                   0x00,
                                                   0x80,
                                                   0xC0,
                                                   0,
                                                   0x40,
                                                   0x80,
                                                   0xC0,
                                                   0,
                                                   0x00,
                                                   0x80,
                                                   0xC0,
                                                   0,
                                                   0x40,
                                                   0x80,
                                                   0xC0};
  alignas(16) static constexpr uint8_t kHigh[16] = {0,
                                                    0x3F,
                                                    0x3F,
                                                    0x3F,
                                                    0x40,
                                                    0x40,
                                                    0x40,
                                                    0x40,
                                                    0x80,
                                                    0xBF,
                                                    0xBF,
                                                    0xBF,
                                                    0xC0,
                                                    0xC0,
                                                    0xC0,
                                                    0xC0};
  const hn::Full128<uint8_t> d8;
  const hn::Full64<uint8_t> d8h;
  const hn::Repartition<uint16_t, decltype(d8)> d16;
  const auto raw = hn::ZeroExtendVector(d8, hn::LoadU(d8h, p));
  const auto codes =
      hn::InterleaveLower(d8, low_half(raw), low_half(hn::ShiftRight<4>(raw)));
  const auto low = hn::TableLookupBytes(hn::Load(d8, kLow), codes);
  const auto high = hn::TableLookupBytes(hn::Load(d8, kHigh), codes);
  return {{hn::BitCast(d16, hn::InterleaveLower(d8, low, high)),
           hn::BitCast(d16, hn::InterleaveUpper(d8, low, high))}};
}

template <size_t P>
HWY_INLINE VF e2m1_values(const Codes16& codes) {
  VU bits;
#if HWY_MAX_BYTES == 64
  bits = hn::PromoteTo(
      DU(), hn::Combine(hn::Full256<uint16_t>(), codes.half[1], codes.half[0]));
#elif HWY_MAX_BYTES == 32
  bits = hn::PromoteTo(DU(), codes.half[P]);
#else
  const auto half = codes.half[P / 2];
  const hn::Full64<uint16_t> dh;
  bits = hn::PromoteTo(
      DU(), P % 2 == 0 ? hn::LowerHalf(dh, half) : hn::UpperHalf(dh, half));
#endif
  return hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
}

template <class Sink>
HWY_INLINE void E2m1::emit(const Sink& sink, size_t k, const uint8_t* p) const {
  if constexpr (kTables) {
    emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
      return look_up(scale_, raw_fields<4, i>(p));
    });
  } else {
    const Codes16 codes = e2m1_codes(p);
    emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
      return hn::Mul(e2m1_values<i>(codes), scale_);
    });
  }
}

// 2^(code - 127), OCP's e8m0 save that 255 is infinite, as in MLX.
HWY_INLINE VF e8m0(uint8_t code) {
  const uint32_t bits = code == 0 ? 0x00400000u : uint32_t{code} << 23;
  return hn::BitCast(DF(), hn::Set(DU(), bits));
}

// e4m3 (OCP FP8, no infinities, 0x7F and 0xFF are NaN) by way of float16,
// whose exponent has a bias larger by 8.
template <class D>
HWY_INLINE hn::Vec<D> e4m3(D d, hn::Vec<hn::Rebind<uint16_t, D>> code) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> df16;
  const auto magnitude = hn::And(code, hn::Set(d16, uint16_t{0x7F}));
  const auto sign =
      hn::And(hn::ShiftLeft<8>(code), hn::Set(d16, uint16_t{0x8000}));
  auto bits = hn::Or(sign, hn::ShiftLeft<7>(magnitude));
  bits =
      hn::Or(bits,
             hn::IfThenElseZero(hn::Eq(magnitude, hn::Set(d16, uint16_t{0x7F})),
                                hn::Set(d16, uint16_t{0x7E00})));
  return hn::Mul(hn::PromoteTo(d, hn::BitCast(df16, bits)), hn::Set(d, 256.0f));
}

// The same for one code at a time.
struct E4m3Table {
  float value[256];
  constexpr E4m3Table() : value() {
    for (unsigned code = 0; code < 128; ++code) {
      const unsigned exponent = code >> 3;
      float v = static_cast<float>(exponent == 0 ? code & 7 : 8 + (code & 7));
      for (unsigned e = exponent == 0 ? 1 : exponent; e < 10; ++e) v *= 0.5f;
      for (unsigned e = 10; e < exponent; ++e) v *= 2.0f;
      if (code == 127) v = std::numeric_limits<float>::quiet_NaN();
      value[code] = v;
      value[code + 128] = -v;
    }
  }
};

class Mxfp4 {
 public:
  Mxfp4(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols / 2)),
        scales_(bytes_of(w.scales, r * (w.cols / 32))) {}
  static constexpr size_t group_size() { return 32; }

  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const E2m1 values(e8m0(scales_[g]));
    values.emit(sink, 0, p_ + g * 16);
    values.emit(sink, 16, p_ + g * 16 + 8);
  }

 private:
  const uint8_t* p_;
  const uint8_t* scales_;
};

class Mxfp8 {
 public:
  Mxfp8(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols)),
        scales_(bytes_of(w.scales, r * (w.cols / 32))) {}
  static constexpr size_t group_size() { return 32; }

  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const hn::Rebind<uint8_t, DF> d8;
    const hn::Rebind<uint16_t, DF> d16;
    const VF scale = e8m0(scales_[g]);
    for (size_t k = 0; k < 32; k += 16) {
      const uint8_t* p = p_ + g * 32 + k;
      emit16(sink, k, [&](auto i) FLASH_INLINE_LAMBDA {
        const auto code = hn::PromoteTo(d16, hn::LoadU(d8, p + i * kN));
        return hn::Mul(e4m3(DF(), code), scale);
      });
    }
  }

 private:
  const uint8_t* p_;
  const uint8_t* scales_;
};

class Nvfp4 {
 public:
  Nvfp4(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols / 2)),
        scales_(bytes_of(w.scales, r * (w.cols / 16))) {}
  static constexpr size_t group_size() { return 16; }

  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    static constexpr E4m3Table kScales;
    const E2m1 values(hn::Set(DF(), kScales.value[scales_[g]]));
    values.emit(sink, 0, p_ + g * 8);
  }

 private:
  const uint8_t* p_;
  const uint8_t* scales_;
};

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_DECODE_MLX_INL_H_
