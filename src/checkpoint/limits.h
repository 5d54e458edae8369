// SPDX-License-Identifier: MIT
#pragma once

// Arithmetic on numbers that a file claims.

#include <cstdint>
#include <optional>
#include <span>

namespace mlx_flash {

inline std::optional<uint64_t> checked_multiply(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Elements of a shape; 1 for none, nothing if they exceed 64 bits. A 0 in the
// shape does not hide an overflow before it.
inline std::optional<uint64_t> checked_product(
    std::span<const uint64_t> shape) {
  uint64_t product = 1;
  for (const uint64_t dimension : shape) {
    if (__builtin_mul_overflow(product, dimension, &product)) {
      return std::nullopt;
    }
  }
  return product;
}

}  // namespace mlx_flash
