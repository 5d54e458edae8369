// SPDX-License-Identifier: MIT
#include "kernels/kv_quant.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/attention.h"

namespace mlx_flash::kernels {
namespace {

constexpr float kHalfMax = 65504.0f;

uint16_t half_bits(float x) {
  uint16_t bits = 0;
  store_kv(&x, 1, DType::kF16, reinterpret_cast<std::byte*>(&bits));
  return bits;
}

// Of a number that half_bits() made.
float half_value(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = bits >> 10 & 31u;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 31) {
    return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  }
  if (exponent == 0) {  // exact: at most ten bits
    const float small = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -small : small;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

void widen(const std::byte* from, DType dtype, size_t n, float* to) {
  if (dtype == DType::kF32) {
    std::memcpy(to, from, n * sizeof(float));
    return;
  }
  for (size_t i = 0; i < n; ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, from + 2 * i, 2);
    to[i] = dtype == DType::kF16 ? half_value(bits)
                                 : std::bit_cast<float>(uint32_t{bits} << 16);
  }
}

// Codes of n values; returns {scale, bias} as stored. Every step rounds alone:
// nothing here may be fused.
std::array<uint16_t, 2> quantize_group(const float* x,
                                       size_t n,
                                       int bits,
                                       uint8_t* codes) {
  const float top = bits == 8 ? 255.0f : 15.0f;
  float low = x[0];
  float high = x[0];
  bool finite = true;
  for (size_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  std::fill_n(codes, n, uint8_t{0});
  if (!finite) {
    const uint16_t nan = half_bits(std::numeric_limits<float>::quiet_NaN());
    return {nan, nan};
  }
  low = std::clamp(low, -kHalfMax, kHalfMax);
  high = std::clamp(high, -kHalfMax, kHalfMax);
  // Codes are chosen for the scale and bias as they are stored.
  const uint16_t bias_bits = half_bits(low);
  const float bias = half_value(bias_bits);
  const uint16_t scale_bits = half_bits((high - bias) / top);
  const float scale = half_value(scale_bits);
  if (!(scale > 0)) return {half_bits(0), bias_bits};
  for (size_t i = 0; i < n; ++i) {
    const float distance = x[i] - bias;
    const float code = std::nearbyint(distance / scale);
    codes[i] = static_cast<uint8_t>(std::clamp(code, 0.0f, top));
  }
  return {scale_bits, bias_bits};
}

}  // namespace

size_t kv_quant_bytes(size_t kv_heads, size_t dim, int bits) {
  return kKvBlock * kv_heads *
         (kv_code_bytes(dim, bits) + kv_groups(dim) * 2 * sizeof(uint16_t));
}

void quantize_kv(const std::byte* rows,
                 DType dtype,
                 size_t kv_heads,
                 size_t dim,
                 int bits,
                 std::byte* out) {
  FLASH_CHECK((bits == 8 || bits == 4) && dim > 0 && dim <= kHeadDimMax);
  const size_t group = kv_group(dim);
  const size_t code_bytes = kv_code_bytes(dim, bits);
  std::byte* scales = out + kKvBlock * kv_heads * code_bytes;
  std::array<float, kHeadDimMax> x;
  std::array<uint8_t, kHeadDimMax + 1> codes;
  codes[dim] = 0;
  for (size_t row = 0; row < kKvBlock * kv_heads; ++row) {
    widen(rows, dtype, dim, x.data());
    rows += dim * dtype_bytes(dtype);
    for (size_t at = 0; at < dim; at += group) {
      const auto stored = quantize_group(
          x.data() + at, std::min(group, dim - at), bits, codes.data() + at);
      std::memcpy(scales, stored.data(), sizeof(stored));
      scales += sizeof(stored);
    }
    if (bits == 8) {
      std::memcpy(out, codes.data(), dim);
    } else {
      codes[dim] = 0;
      for (size_t i = 0; i < code_bytes; ++i) {
        out[i] = static_cast<std::byte>(codes[2 * i] | codes[2 * i + 1] << 4);
      }
    }
    out += code_bytes;
  }
}

}  // namespace mlx_flash::kernels
