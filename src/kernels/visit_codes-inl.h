// SPDX-License-Identifier: MIT

// From an integer-coded format known when the program runs to the type of its
// codes.

#if defined(MLX_FLASH_KERNELS_VISIT_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MLX_FLASH_KERNELS_VISIT_CODES_INL_H_
#undef MLX_FLASH_KERNELS_VISIT_CODES_INL_H_
#else
#define MLX_FLASH_KERNELS_VISIT_CODES_INL_H_
#endif

#include "base/check.h"
#include "kernels/codes_gguf-inl.h"
#include "kernels/codes_mlx-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

template <class Codes>
struct CodesType {
  using type = Codes;
};

template <int kBits, class Visitor>
void visit_affine(size_t group_size, const Visitor& visitor) {
  switch (group_size) {
    case 32:
      return visitor(CodesType<AffineCodes<kBits, 32>>());
    case 64:
      return visitor(CodesType<AffineCodes<kBits, 64>>());
    default:
      FLASH_CHECK(group_size == 128);
      return visitor(CodesType<AffineCodes<kBits, 128>>());
  }
}

// Calls visitor(CodesType<C>()) with the codes C of `format`.
template <class Visitor>
void visit_codes(const WeightFormat& format, const Visitor& visitor) {
  switch (format.kind) {
#define FLASH_FLOAT(kind, Decoder)
#define FLASH_CODES(kind, Codes) \
  case WeightKind::kind:         \
    return visitor(CodesType<Codes>());
#define FLASH_AFFINE(bits)
#include "kernels/formats.inc"
    default:
      break;
  }
  FLASH_CHECK(format.kind == WeightKind::kAffine);
  switch (format.bits) {
#define FLASH_FLOAT(kind, Decoder)
#define FLASH_CODES(kind, Codes)
#define FLASH_AFFINE(bits) \
  case bits:               \
    return visit_affine<bits>(format.group_size, visitor);
#include "kernels/formats.inc"
    default:
      FLASH_CHECK(!"an affine format of 2, 3, 4, 5, 6 or 8 bits");
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#endif  // MLX_FLASH_KERNELS_VISIT_CODES_INL_H_
