// SPDX-License-Identifier: MIT

// One stored weight at a time, from the descriptions of the formats: MLX's
// documentation of `quantize`, and the structs of ggml-common.h.

#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/reference.h"

namespace mlx_flash::kernels::reference {
namespace {

unsigned byte_at(const std::byte* p, size_t i) {
  return std::to_integer<unsigned>(p[i]);
}

uint16_t u16_at(const std::byte* p, size_t offset) {
  return static_cast<uint16_t>(byte_at(p, offset) |
                               (byte_at(p, offset + 1) << 8));
}

float half_at(const std::byte* p, size_t offset) {
  return half_to_float(u16_at(p, offset));
}

float number_at(const std::byte* p, DType dtype, size_t i) {
  if (dtype == DType::kF16) return half_to_float(u16_at(p, 2 * i));
  if (dtype == DType::kBF16) return bfloat_to_float(u16_at(p, 2 * i));
  float value;
  std::memcpy(&value, p + 4 * i, 4);
  return value;
}

// Bit by bit: field k of a little-endian stream of fields.
int field(const std::byte* p, size_t k, unsigned bits) {
  unsigned q = 0;
  for (unsigned b = 0; b < bits; ++b) {
    const size_t bit = k * bits + b;
    q |= ((byte_at(p, bit / 8) >> (bit % 8)) & 1u) << b;
  }
  return static_cast<int>(q);
}

float e2m1(unsigned code) {
  constexpr float kValues[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return (code & 8) != 0 ? -kValues[code & 7] : kValues[code & 7];
}

float e4m3(unsigned code) {
  const int exponent = static_cast<int>(code >> 3) & 15;
  const int mantissa = static_cast<int>(code) & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa),
                                           exponent - 10);
  if ((code & 0x7F) == 0x7F) value = std::numeric_limits<float>::quiet_NaN();
  return (code & 0x80) != 0 ? -value : value;
}

float power_of_two(unsigned code) {
  return std::ldexp(1.0f, static_cast<int>(code) - 127);
}

unsigned nibble(const std::byte* p, size_t i) {
  return (byte_at(p, i / 2) >> (i % 2 * 4)) & 15;
}

// Block of 32 whose bytes hold value i low and value i + 16 high.
unsigned split_nibble(const std::byte* qs, size_t i) {
  return i < 16 ? byte_at(qs, i) & 15 : byte_at(qs, i - 16) >> 4;
}

unsigned bit_of(const std::byte* p, size_t i) {
  return (byte_at(p, i / 8) >> (i % 8)) & 1;
}

// Pair i of the packed scales and minimums of Q4_K and Q5_K.
void scale_min_k4(const std::byte* s, size_t i, float* scale, float* minimum) {
  if (i < 4) {
    *scale = static_cast<float>(byte_at(s, i) & 63);
    *minimum = static_cast<float>(byte_at(s, i + 4) & 63);
  } else {
    *scale = static_cast<float>((byte_at(s, i + 4) & 15) |
                                (byte_at(s, i - 4) >> 6 << 4));
    *minimum = static_cast<float>((byte_at(s, i + 4) >> 4) |
                                  (byte_at(s, i) >> 6 << 4));
  }
}

CodedWeight affine(float scale, unsigned code, float offset) {
  return {scale, static_cast<int>(code), offset};
}
CodedWeight centred(float scale, unsigned code, int zero) {
  return {scale, static_cast<int>(code) - zero, std::nullopt};
}

CodedWeight q2_k(const std::byte* b, size_t i) {  // scales[16] qs[64] d dmin
  const unsigned s = byte_at(b, i / 16);
  const unsigned q =
      (byte_at(b, 16 + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2)) & 3;
  return affine(half_at(b, 80) * static_cast<float>(s & 15),
                q,
                -(half_at(b, 82) * static_cast<float>(s >> 4)));
}

// hmask[32] qs[64] scales[12] d
CodedWeight q3_k(const std::byte* b, size_t i) {
  const std::byte* scales = b + 96;
  const size_t s = i / 16;
  const unsigned low =
      s < 8 ? byte_at(scales, s) & 15 : byte_at(scales, s - 8) >> 4;
  const unsigned high = (byte_at(scales, 8 + s % 4) >> (s / 4 * 2)) & 3;
  const int scale = static_cast<int>(low | (high << 4)) - 32;
  const unsigned q =
      (byte_at(b, 32 + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2)) & 3;
  const unsigned third = (byte_at(b, i % 32) >> (i / 32)) & 1;
  return centred(
      half_at(b, 108) * static_cast<float>(scale), q | (third << 2), 4);
}

CodedWeight q4_k(const std::byte* b, size_t i) {  // d dmin scales[12] qs[128]
  float scale;
  float minimum;
  scale_min_k4(b + 4, i / 32, &scale, &minimum);
  const unsigned q =
      (byte_at(b, 16 + i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4)) & 15;
  return affine(half_at(b, 0) * scale, q, -(half_at(b, 2) * minimum));
}

// d dmin scales[12] qh[32] qs[128]
CodedWeight q5_k(const std::byte* b, size_t i) {
  float scale;
  float minimum;
  scale_min_k4(b + 4, i / 32, &scale, &minimum);
  const unsigned low =
      (byte_at(b, 48 + i / 64 * 32 + i % 32) >> (i % 64 / 32 * 4)) & 15;
  const unsigned fifth = (byte_at(b, 16 + i % 32) >> (i / 32)) & 1;
  return affine(
      half_at(b, 0) * scale, low | (fifth << 4), -(half_at(b, 2) * minimum));
}

CodedWeight q6_k(const std::byte* b, size_t i) {  // ql[128] qh[64] scales[16] d
  const size_t n = i / 128;
  const size_t j = i % 128;
  const unsigned low = (byte_at(b, n * 64 + j % 64) >> (j / 64 * 4)) & 15;
  const unsigned high = (byte_at(b, 128 + n * 32 + j % 32) >> (j / 32 * 2)) & 3;
  const auto scale = static_cast<int8_t>(byte_at(b, 192 + i / 16));
  return centred(
      half_at(b, 208) * static_cast<float>(scale), low | (high << 4), 32);
}

CodedWeight block_weight(WeightKind kind, const std::byte* b, size_t i) {
  switch (kind) {
    case WeightKind::kQ4_0:
      return centred(half_at(b, 0), split_nibble(b + 2, i), 8);
    case WeightKind::kQ4_1:
      return affine(half_at(b, 0), split_nibble(b + 4, i), half_at(b, 2));
    case WeightKind::kQ5_0:
      return centred(
          half_at(b, 0), split_nibble(b + 6, i) | (bit_of(b + 2, i) << 4), 16);
    case WeightKind::kQ5_1:
      return affine(half_at(b, 0),
                    split_nibble(b + 8, i) | (bit_of(b + 4, i) << 4),
                    half_at(b, 2));
    case WeightKind::kQ8_0:
      return {
          half_at(b, 0), static_cast<int8_t>(byte_at(b, 2 + i)), std::nullopt};
    case WeightKind::kQ2_K:
      return q2_k(b, i);
    case WeightKind::kQ3_K:
      return q3_k(b, i);
    case WeightKind::kQ4_K:
      return q4_k(b, i);
    case WeightKind::kQ5_K:
      return q5_k(b, i);
    case WeightKind::kQ6_K:
      return q6_k(b, i);
    case WeightKind::kGgufMxfp4:
      return {std::ldexp(1.0f, static_cast<int>(byte_at(b, 0)) - 128),
              static_cast<int>(2 * e2m1(split_nibble(b + 1, i))),
              std::nullopt};
    default:
      FLASH_CHECK(!"a block format");
      return {};
  }
}

// The row of scales of row r.
const std::byte* scales_of(const WeightRows& w, size_t r) {
  const RowBytes bytes = row_bytes(w.format, w.cols);
  return w.scales + (w.rows_above + r) / w.format.scale_rows() * bytes.scales;
}

}  // namespace

CodedWeight coded_weight(const WeightRows& w, size_t r, size_t k) {
  const RowBytes bytes = row_bytes(w.format, w.cols);
  const std::byte* row = w.weight + r * bytes.weight;
  const std::byte* scales = scales_of(w, r);
  const size_t group = k / w.format.group_size;
  switch (w.format.kind) {
    case WeightKind::kAffine:
      return {
          number_at(scales, w.format.scale_dtype, group),
          field(row, k, w.format.bits),
          number_at(w.biases + r * bytes.biases, w.format.scale_dtype, group)};
    case WeightKind::kMxfp4:
      return {power_of_two(byte_at(scales, group)) / 2,
              static_cast<int>(2 * e2m1(nibble(row, k))),
              std::nullopt};
    case WeightKind::kNvfp4:
      return {e4m3(byte_at(scales, group)) / 2,
              static_cast<int>(2 * e2m1(nibble(row, k))),
              std::nullopt};
    default: {
      const size_t block_bytes = bytes.weight / (w.cols / w.format.group_size);
      return block_weight(
          w.format.kind, row + group * block_bytes, k % w.format.group_size);
    }
  }
}

float weight(const WeightRows& w, size_t r, size_t k) {
  const RowBytes bytes = row_bytes(w.format, w.cols);
  const std::byte* row = w.weight + r * bytes.weight;
  switch (w.format.kind) {
    case WeightKind::kF32:
      return number_at(row, DType::kF32, k);
    case WeightKind::kF16:
      return number_at(row, DType::kF16, k);
    case WeightKind::kBF16:
      return number_at(row, DType::kBF16, k);
    case WeightKind::kMxfp8:
      return e4m3(byte_at(row, k)) *
             power_of_two(byte_at(scales_of(w, r), k / 32));
    case WeightKind::kFp8: {
      const float scale = number_at(scales_of(w, r), DType::kF32, k / 128);
      return bfloat_to_float(float_to_bfloat(e4m3(byte_at(row, k)) * scale));
    }
    default: {
      const CodedWeight c = coded_weight(w, r, k);
      const auto code = static_cast<float>(c.code);
      const bool e2m1_code = w.format.kind == WeightKind::kMxfp4 ||
                             w.format.kind == WeightKind::kNvfp4;
      if (e2m1_code && nibble(row, k) == 8) return c.scale * -0.0f;
      return c.offset ? std::fma(c.scale, code, *c.offset) : c.scale * code;
    }
  }
}

}  // namespace mlx_flash::kernels::reference
