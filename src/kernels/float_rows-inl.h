// SPDX-License-Identifier: MIT

// Weights that are floating-point numbers, as float32.
//
// A class here is one row of a matrix. group(g, sink) decodes group g of
// group_size() values and calls sink(Part<P>(), k, vector) for each vector of
// values, in order: `vector` holds the values k, ..., k + kN - 1 of the group
// and k % 16 == P * kN. No byte outside the row is read.

#if defined(MLX_FLASH_KERNELS_FLOAT_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_FLOAT_ROWS_INL_H_
#undef MLX_FLASH_KERNELS_FLOAT_ROWS_INL_H_
#else
#define MLX_FLASH_KERNELS_FLOAT_ROWS_INL_H_
#endif

#include "kernels/codes_mlx-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/matmul.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

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

// 2^(code - 127), OCP's e8m0 save that 255 is infinite, as in MLX.
HWY_INLINE VF e8m0(uint8_t code) {
  const uint32_t bits = code == 0 ? 0x00400000u : uint32_t{code} << 23;
  return hn::BitCast(DF(), hn::Set(DU(), bits));
}

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

// The nearest bfloat16, ties to even. NaN stays NaN: its payload is lost.
HWY_INLINE VF round_to_bf16(VF v) {
  const auto bits = hn::BitCast(DU(), v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(DU(), 1));
  const auto half = hn::Add(odd, hn::Set(DU(), 0x7FFF));
  const auto rounded = hn::And(hn::Add(bits, half), hn::Set(DU(), 0xFFFF0000u));
  return hn::IfThenElse(hn::Ne(v, v), v, hn::BitCast(DF(), rounded));
}

class Fp8 {
 public:
  Fp8(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols)),
        scales_(bytes_of(w.scales,
                         (w.rows_above + r) / kFp8Block *
                             row_bytes(w.format, w.cols).scales)) {}
  static constexpr size_t group_size() { return 16; }

  template <class Sink>
  HWY_INLINE void group(size_t g, const Sink& sink) const {
    const VF scale = scale_of(g);
    const uint8_t* p = p_ + g * 16;
    emit16(sink, 0, [&](auto i) FLASH_INLINE_LAMBDA {
      return value(p + i * kN, scale);
    });
  }

  // As Dense's.
  HWY_INLINE Acc16 tail(size_t cols, size_t n) const {
    alignas(64) uint8_t raw[16] = {};
    alignas(64) float values[16];
    std::memcpy(raw, p_ + cols - n, n);
    const VF scale = scale_of(cols / 16);
    for_parts([&](auto i) FLASH_INLINE_LAMBDA {
      hn::Store(value(raw + i * kN, scale), DF(), values + i * kN);
    });
    for (size_t i = n; i < 16; ++i) values[i] = -0.0f;
    return load16(values);
  }

 private:
  // Of group g: the file need not have aligned it.
  HWY_INLINE VF scale_of(size_t g) const {
    float scale;
    std::memcpy(&scale, scales_ + g * 16 / kFp8Block * sizeof(float), 4);
    return hn::Set(DF(), scale);
  }
  static HWY_INLINE VF value(const uint8_t* p, VF scale) {
    const hn::Rebind<uint8_t, DF> d8;
    const hn::Rebind<uint16_t, DF> d16;
    const auto code = hn::PromoteTo(d16, hn::LoadU(d8, p));
    return round_to_bf16(hn::Mul(e4m3(DF(), code), scale));
  }

  const uint8_t* p_;
  const uint8_t* scales_;
};

// Has values that fill no group of sixteen at the end of a row.
template <class Decoder>
constexpr bool kHasTail = requires(const Decoder& d) {
  d.tail(0, 0);
};

template <class Decoder>
struct DecoderType {
  using type = Decoder;
};

// Calls visitor(DecoderType<D>()) with the decoder D of `format`.
// REQUIRES: !integer_coded(format).
template <class Visitor>
void visit_float_rows(const WeightFormat& format, const Visitor& visitor) {
  switch (format.kind) {
#define FLASH_FLOAT(kind, Decoder) \
  case WeightKind::kind:           \
    return visitor(DecoderType<Decoder>());
#define FLASH_CODES(kind, Codes)
#define FLASH_AFFINE(bits)
#include "kernels/formats.inc"
    default:
      FLASH_CHECK(!"a format of floating-point numbers");
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_FLOAT_ROWS_INL_H_
