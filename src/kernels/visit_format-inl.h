// SPDX-License-Identifier: MIT

// From a format known when the program runs to the type of its decoder.

#if defined(MLX_FLASH_KERNELS_VISIT_FORMAT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_VISIT_FORMAT_INL_H_
#undef MLX_FLASH_KERNELS_VISIT_FORMAT_INL_H_
#else
#define MLX_FLASH_KERNELS_VISIT_FORMAT_INL_H_
#endif

#include "base/check.h"
#include "kernels/decode_gguf-inl.h"
#include "kernels/decode_mlx-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

// Has values that fill no group of sixteen at the end of a row.
template <class Decoder>
constexpr bool kHasTail = requires(const Decoder& d) {
  d.tail(0, 0);
};

template <class Decoder>
struct DecoderType {
  using type = Decoder;
};

template <int kBits, class Visitor>
void visit_affine(DType scale_dtype, const Visitor& visitor) {
  switch (scale_dtype) {
    case DType::kF32:
      return visitor(DecoderType<Affine<kBits, ScaleF32>>());
    case DType::kF16:
      return visitor(DecoderType<Affine<kBits, ScaleF16>>());
    default:
      FLASH_CHECK(scale_dtype == DType::kBF16);
      return visitor(DecoderType<Affine<kBits, ScaleBF16>>());
  }
}

// Calls visitor(DecoderType<D>()) with the decoder D of `format`.
template <class Visitor>
void visit_format(const WeightFormat& format, const Visitor& visitor) {
  switch (format.kind) {
#define FLASH_DENSE(kind, dtype, Decoder) \
  case WeightKind::kind:                  \
    return visitor(DecoderType<Decoder>());
#define FLASH_BLOCK(kind, Decoder) \
  case WeightKind::kind:           \
    return visitor(DecoderType<Decoder>());
#define FLASH_AFFINE(bits)
#include "kernels/formats.inc"
    case WeightKind::kAffine:
      break;
  }
  switch (format.bits) {
#define FLASH_DENSE(kind, dtype, Decoder)
#define FLASH_BLOCK(kind, Decoder)
#define FLASH_AFFINE(bits) \
  case bits:               \
    return visit_affine<bits>(format.scale_dtype, visitor);
#include "kernels/formats.inc"
    default:
      FLASH_CHECK(!"an affine format of 2, 3, 4, 5, 6 or 8 bits");
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_VISIT_FORMAT_INL_H_
