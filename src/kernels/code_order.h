// SPDX-License-Identifier: MIT
#pragma once

// In which order a format's codes come out of their bytes with the fewest
// instructions; inputs are laid out alike once, instead of every weight.

#include <cstddef>

#include "base/weight_format.h"

namespace mlx_flash::kernels {

enum class CodeOrder {
  kNatural,
  // Of each 32 values the even ones, then the odd ones: both nibbles of 16
  // bytes that hold neighbours.
  kEvensFirst,
};

// What 16 bytes hold, if every byte holds whole codes: then bytes of many rows
// can be put side by side before codes are taken out of them.
enum class UnitCodes {
  kNone,
  kNibbles,  // 16 codes in the low halves, 16 in the high ones
  kBytes,
  kSignedBytes,
};

constexpr CodeOrder code_order(const WeightFormat& format) {
  const bool neighbours =
      format.kind == WeightKind::kMxfp4 ||
      (format.kind == WeightKind::kAffine && format.bits == 4);
  return neighbours ? CodeOrder::kEvensFirst : CodeOrder::kNatural;
}

// What is taken from a code before its scale multiplies it.
constexpr int code_zero(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kQ4_0:
      return 8;
    case WeightKind::kQ5_0:
      return 16;
    case WeightKind::kQ3_K:
      return 4;
    case WeightKind::kQ6_K:
      return 32;
    default:
      return 0;
  }
}

// Has an offset for each group besides the scale.
constexpr bool code_offset(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kAffine:
    case WeightKind::kQ4_1:
    case WeightKind::kQ5_1:
    case WeightKind::kQ2_K:
    case WeightKind::kQ4_K:
    case WeightKind::kQ5_K:
      return true;
    default:
      return false;
  }
}

// Values that share a scale: less than a block in K-quants.
constexpr size_t scale_group(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kQ4_K:
    case WeightKind::kQ5_K:
      return 32;
    case WeightKind::kQ2_K:
    case WeightKind::kQ3_K:
    case WeightKind::kQ6_K:
      return 16;
    default:
      return format.group_size;
  }
}

}  // namespace mlx_flash::kernels
