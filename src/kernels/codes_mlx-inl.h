// SPDX-License-Identifier: MIT

// Integer codes of MLX's split formats.
//
// A class here is one row of a matrix whose weights are
//
//   scale * (code - kZero), or fma(scale, code - kZero, offset) if kOffset
//
// in groups of group_size() codes that share a scale (scale_group()).
//
//   kGroupBytes                    from group to group of a chunk; 0 where
//   groups
//                                  share bytes, and all chunks are whole
//   scales(c, n, &scale, &offset)  of the first n <= 8 groups of chunk c (eight
//                                  groups), then zeros
//   chunk(c)                       where it reads chunk c from
//   codes<q>(chunk(c), c, sink)    of group q of chunk c: sink(k, codes) for
//                                  each sixteen of them, in code_order()
//
// and, where every byte holds whole codes,
//
//   kUnit                          what units of 16 bytes hold
//   unit_at(u)                     where in a chunk unit u begins
//   unit_low(u), unit_high(u)      place in the chunk, in code_order(), of the
//                                  first of its codes (in high nibbles)
//
// No byte outside the row is read.

#if defined(MLX_FLASH_KERNELS_CODES_MLX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_CODES_MLX_INL_H_
#undef MLX_FLASH_KERNELS_CODES_MLX_INL_H_
#else
#define MLX_FLASH_KERNELS_CODES_MLX_INL_H_
#endif

#include "kernels/code_order.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
// After what it needs.
#include "kernels/fixed_lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE const uint8_t* bytes_of(const std::byte* p, size_t offset) {
  return reinterpret_cast<const uint8_t*>(p) + offset;
}
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

// ---- Fields of a little-endian bit stream ----

// For code i of sixteen, whose first bit is bit i * kBits behind byte kByte:
// the two bytes that hold it, and the power of two that brings its highest bit
// to the top of a 16-bit lane.
template <int kBits, int kByte>
struct FieldTable {
  alignas(32) uint8_t shuffle[32];
  alignas(32) uint16_t factor[16];
  constexpr FieldTable() : shuffle(), factor() {
    for (int i = 0; i < 16; ++i) {
      const int bit = i * kBits;
      shuffle[2 * i] = static_cast<uint8_t>(kByte + bit / 8);
      shuffle[2 * i + 1] = static_cast<uint8_t>(kByte + bit / 8 + 1);
      factor[i] = static_cast<uint16_t>(1 << (16 - kBits - bit % 8));
    }
  }
};

// Sixteen fields of kBits from byte kByte of `bytes` on.
template <int kBits, int kByte>
HWY_INLINE S16 fields(V16B bytes) {
  static constexpr FieldTable<kBits, kByte> kTable;
  S16 out;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const hn::Repartition<uint8_t, DS16> d8;
#if FLASH_TWO_HALVES
    const auto both = bytes;
#else
    const auto both = hn::Combine(d8, bytes, bytes);
#endif
    const auto found = hn::TableLookupBytes(
        both, hn::Load(d8, kTable.shuffle + h * hn::MaxLanes(d8)));
    const auto top =
        hn::Mul(hn::BitCast(DU16(), found),
                hn::Load(DU16(), kTable.factor + h * hn::MaxLanes(DU16())));
    out.half[h] = hn::BitCast(DS16(), hn::ShiftRight<16 - kBits>(top));
  });
  return out;
}

// 32 codes from 4 * kBits bytes.
template <int kBits, class Sink>
HWY_INLINE void emit_fields(const uint8_t* p, size_t k, const Sink& sink) {
  const hn::Repartition<uint32_t, D16B> d32;
  const hn::Repartition<uint64_t, D16B> d64;
  if constexpr (kBits == 8) {
    sink(k, widen<uint8_t>(load_bytes(p)));
    sink(k + 16, widen<uint8_t>(load_bytes(p + 16)));
  } else if constexpr (kBits == 4) {
    const S16 both = widen<uint8_t>(load_bytes(p));
    sink(k, low_bits<4>(both));
    sink(k + 16, shift_right<4>(both));
  } else if constexpr (kBits == 2) {
    const auto word = [&](size_t i) FLASH_INLINE_LAMBDA {
      return hn::BitCast(D16B(), hn::Set(d32, load_as<uint32_t>(p + i)));
    };
    sink(k, fields<2, 0>(word(0)));
    sink(k + 16, fields<2, 0>(word(4)));
  } else if constexpr (kBits == 3) {
    const auto word = [&](size_t i) FLASH_INLINE_LAMBDA {
      return hn::BitCast(D16B(), hn::Set(d64, load_as<uint64_t>(p + i)));
    };
    sink(k, fields<3, 0>(word(0)));
    sink(k + 16, fields<3, 2>(word(4)));
  } else {
    // The second sixteen bytes end where the 32 codes end.
    constexpr int kSkip = 4 * kBits - 16;
    sink(k, fields<kBits, 0>(load_bytes(p)));
    sink(k + 16, fields<kBits, 2 * kBits - kSkip>(load_bytes(p + kSkip)));
  }
}

template <class Codes>
constexpr UnitCodes unit_of() {
  if constexpr (requires { Codes::kUnit; }) return Codes::kUnit;
  return UnitCodes::kNone;
}
template <class Codes>
constexpr UnitCodes kUnitOf = unit_of<Codes>();

template <int kBits, size_t kGroup>
class AffineCodes {
 public:
  static constexpr int kZero = 0;
  static constexpr bool kOffset = true;
  static constexpr size_t kGroupBytes = kGroup * kBits / 8;

  AffineCodes(const WeightRows& w, size_t r)
      : dtype_(w.format.scale_dtype),
        number_bytes_(dtype_bytes(dtype_)),
        p_(bytes_of(w.weight, r * (w.cols * kBits / 8))),
        scales_(bytes_of(w.scales, r * (w.cols / kGroup) * number_bytes_)),
        biases_(bytes_of(w.biases, r * (w.cols / kGroup) * number_bytes_)) {}
  static constexpr size_t group_size() { return kGroup; }
  HWY_INLINE const uint8_t* chunk(size_t c) const {
    return p_ + c * (kChunkGroups * kGroupBytes);
  }

  HWY_INLINE void scales(size_t c, size_t n, F8* scale, F8* offset) const {
    *scale = numbers(scales_of(c), n);
    *offset = numbers(biases_of(c), n);
  }
  // Where those of chunk c lie.
  HWY_INLINE const uint8_t* scales_of(size_t c) const {
    return scales_ + c * kChunkGroups * number_bytes_;
  }
  HWY_INLINE const uint8_t* biases_of(size_t c) const {
    return biases_ + c * kChunkGroups * number_bytes_;
  }

  static constexpr UnitCodes kUnit = kBits == 4   ? UnitCodes::kNibbles
                                     : kBits == 8 ? UnitCodes::kBytes
                                                  : UnitCodes::kNone;
  static constexpr size_t unit_at(size_t u) { return u * 16; }
  static constexpr size_t unit_low(size_t u) { return u * (128 / kBits); }
  static constexpr size_t unit_high(size_t u) { return unit_low(u) + 16; }

  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const uint8_t* p = chunk + kQ * kGroupBytes;
    for (size_t k = 0; k < kGroup; k += 32) {
      emit_fields<kBits>(p + k * kBits / 8, k, sink);
    }
  }

 private:
  HWY_INLINE F8 numbers(const uint8_t* p, size_t n) const {
    switch (dtype_) {
      case DType::kF32:
        return load_first<4>(p, n, load_eight_f32);
      case DType::kF16:
        return load_first<2>(p, n, load_eight_f16);
      default:
        return load_first<2>(p, n, load_eight_bf16);
    }
  }

  DType dtype_;
  size_t number_bytes_;
  const uint8_t* p_;
  const uint8_t* scales_;
  const uint8_t* biases_;
};

// ---- Floating-point codes (OCP MX, NVFP4): e2m1 * 2 is an integer ----

// Twice e2m1 by code, of the nibbles in the low halves of sixteen bytes. -0
// counts as 0.
HWY_INLINE V16B twice_e2m1(V16B nibbles) {
  alignas(16) static constexpr int8_t kTwice[16] = {
      0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const hn::Full128<int8_t> d;
  return hn::TableLookupBytes(hn::BitCast(D16B(), hn::Load(d, kTwice)),
                              nibbles);
}

// Half of 2^(code - 127), OCP's e8m0 save that 255 is infinite, as in MLX.
HWY_INLINE F8 half_e8m0(const uint8_t* p) {
  const hn::Rebind<uint8_t, DU8> d8;
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const auto code = hn::PromoteTo(DU8(), hn::LoadU(d8, p + h * kLanes8));
    const auto bits = hn::IfThenElse(hn::Eq(code, hn::Zero(DU8())),
                                     hn::Set(DU8(), 0x00400000u),
                                     hn::ShiftLeft<23>(code));
    v.half[h] = hn::Mul(hn::BitCast(DF8(), bits), hn::Set(DF8(), 0.5f));
  });
  return v;
}

class Mxfp4Codes {
 public:
  static constexpr int kZero = 0;
  static constexpr bool kOffset = false;
  static constexpr size_t kGroupBytes = 16;
  Mxfp4Codes(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols / 2)),
        scales_(bytes_of(w.scales, r * (w.cols / 32))) {}
  static constexpr size_t group_size() { return 32; }
  HWY_INLINE const uint8_t* chunk(size_t c) const {
    return p_ + c * (kChunkGroups * kGroupBytes);
  }

  HWY_INLINE void scales(size_t c, size_t n, F8* scale, F8*) const {
    *scale = load_first<1>(scales_ + c * kChunkGroups, n, half_e8m0);
  }
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const V16B both = load_bytes(chunk + kQ * kGroupBytes);
    sink(0, widen<int8_t>(twice_e2m1(low_nibble(both))));
    sink(16, widen<int8_t>(twice_e2m1(high_nibble(both))));
  }

 private:
  const uint8_t* p_;
  const uint8_t* scales_;
};

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

HWY_INLINE F8 half_e4m3(const uint8_t* p) {
  const hn::Rebind<uint8_t, DF8> d8;
  const hn::Rebind<uint16_t, DF8> d16;
  F8 v;
  for_halves([&](auto h) FLASH_INLINE_LAMBDA {
    const auto code = hn::PromoteTo(d16, hn::LoadU(d8, p + h * kLanes8));
    v.half[h] = hn::Mul(e4m3(DF8(), code), hn::Set(DF8(), 0.5f));
  });
  return v;
}

class Nvfp4Codes {
 public:
  static constexpr int kZero = 0;
  static constexpr bool kOffset = false;
  static constexpr size_t kGroupBytes = 8;
  Nvfp4Codes(const WeightRows& w, size_t r)
      : p_(bytes_of(w.weight, r * w.cols / 2)),
        scales_(bytes_of(w.scales, r * (w.cols / 16))) {}
  static constexpr size_t group_size() { return 16; }
  HWY_INLINE const uint8_t* chunk(size_t c) const {
    return p_ + c * (kChunkGroups * kGroupBytes);
  }

  HWY_INLINE void scales(size_t c, size_t n, F8* scale, F8*) const {
    *scale = load_first<1>(scales_ + c * kChunkGroups, n, half_e4m3);
  }
  template <size_t kQ, class Sink>
  static HWY_INLINE void codes(const uint8_t* chunk, size_t, const Sink& sink) {
    const hn::Full64<uint8_t> d;
    const V16B both =
        hn::ZeroExtendVector(D16B(), hn::LoadU(d, chunk + kQ * kGroupBytes));
    const V16B nibbles =
        hn::InterleaveLower(D16B(), low_nibble(both), high_nibble(both));
    sink(0, widen<int8_t>(twice_e2m1(nibbles)));
  }

 private:
  const uint8_t* p_;
  const uint8_t* scales_;
};

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_CODES_MLX_INL_H_
