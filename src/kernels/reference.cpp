// SPDX-License-Identifier: MIT
#include "kernels/reference.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "base/check.h"
#include "kernels/code_order.h"
#include "kernels/fixed_point.h"
#include "kernels/math_constants.h"

namespace mlx_flash::kernels::reference {

namespace {

// A format that its kind says all about.
WeightFormat plain(WeightKind kind) {
  switch (kind) {
    case WeightKind::kF32:
      return dense_format(DType::kF32);
    case WeightKind::kF16:
      return dense_format(DType::kF16);
    case WeightKind::kBF16:
      return dense_format(DType::kBF16);
    default:
      return block_format(kind);
  }
}

}  // namespace

std::vector<WeightFormat> all_formats() {
  std::vector<WeightFormat> formats;
#define FLASH_FLOAT(kind, Decoder) formats.push_back(plain(WeightKind::kind));
#define FLASH_CODES(kind, Codes) formats.push_back(plain(WeightKind::kind));
#define FLASH_AFFINE(bits)                                         \
  for (int group : {32, 64, 128}) {                                \
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) { \
      formats.push_back(affine_format(bits, group, dtype));        \
    }                                                              \
  }
#include "kernels/formats.inc"
  return formats;
}

float half_to_float(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  float value;
  if (exponent == 31) {
    value = mantissa == 0 ? std::numeric_limits<float>::infinity()
                          : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    value = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

float bfloat_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

uint16_t float_to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00);
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return static_cast<uint16_t>(sign | 0x7C00);
  // Units of the last place: 2^-24 below 2^-14, else 2^(e - 10).
  const int e = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const auto units = static_cast<int>(
      std::nearbyint(std::ldexp(magnitude, 10 - e)));  // <= 2048
  return static_cast<uint16_t>(sign | (((e + 14) << 10) + units));
}

uint16_t float_to_bfloat(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  const uint32_t below = bits & 0xFFFF;
  uint32_t kept = bits >> 16;
  if (below > 0x8000 || (below == 0x8000 && (kept & 1) != 0)) ++kept;
  return static_cast<uint16_t>(kept);
}

float dot(const float* a, const float* b, size_t n) {
  std::array<float, 16> acc = {};
  for (size_t k = 0; k < n; ++k) {
    acc[k % 16] = std::fma(a[k], b[k], acc[k % 16]);
  }
  for (size_t width = 8; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) acc[i] = acc[i] + acc[i + width];
  }
  return acc[0];
}

namespace {

// x in fixed point, group by group, as kernels/fixed_point.h says.
struct Fixed {
  std::vector<float> scale;
  std::vector<int> q;
  std::vector<int> sum;
};

std::optional<Fixed> fixed_point(const float* x, size_t cols, size_t group) {
  Fixed fixed;
  for (size_t g = 0; g < cols / group; ++g) {
    float m = 0;
    for (size_t k = g * group; k < (g + 1) * group; ++k) {
      if (!(std::fabs(x[k]) <= kFixedRangeHigh)) return std::nullopt;
      m = std::max(m, std::fabs(x[k]));
    }
    if (m != 0 && m < kFixedRangeLow) return std::nullopt;
    const float v = m == 0 ? 0 : kFixedLargest / m;
    fixed.scale.push_back(m == 0 ? 0 : m / kFixedLargest);
    fixed.sum.push_back(0);
    for (size_t k = g * group; k < (g + 1) * group; ++k) {
      fixed.q.push_back(static_cast<int>(std::nearbyint(x[k] * v)));
      fixed.sum.back() += fixed.q.back();
    }
  }
  return fixed;
}

// Arithmetic B of kernels/matmul.h.
float fixed_dot(const WeightRows& w, size_t r, const Fixed& x) {
  const size_t groups = x.scale.size();
  const size_t group = w.cols / groups;
  std::array<float, 8> acc = {};
  for (size_t g = 0; g < (groups + 7) / 8 * 8; ++g) {
    float& a = acc[g % 8];
    if (g >= groups) {
      a = std::fma(0.0f, 0.0f, a);
      continue;
    }
    int64_t sum = 0;
    CodedWeight last;
    for (size_t k = g * group; k < (g + 1) * group; ++k) {
      last = coded_weight(w, r, k);
      sum += int64_t{last.code} * x.q[k];
    }
    const float scale = last.scale * x.scale[g];
    a = std::fma(scale, static_cast<float>(static_cast<int32_t>(sum)), a);
    if (last.offset) {
      const float s = x.scale[g] * static_cast<float>(x.sum[g]);
      a = std::fma(*last.offset, s, a);
    }
  }
  for (size_t width = 4; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) acc[i] = acc[i] + acc[i + width];
  }
  return acc[0];
}

}  // namespace

void matmul(const WeightRows& w,
            size_t row_begin,
            size_t row_end,
            const float* x,
            size_t x_stride,
            size_t tokens,
            float* y,
            size_t y_stride) {
  std::vector<float> row(w.cols);
  for (size_t t = 0; t < tokens; ++t) {
    const float* xt = x + t * x_stride;
    std::optional<Fixed> fixed;
    if (integer_coded(w.format)) {
      fixed = fixed_point(xt, w.cols, scale_group(w.format));
    }
    for (size_t r = row_begin; r < row_end; ++r) {
      if (fixed) {
        y[t * y_stride + r] = fixed_dot(w, r, *fixed);
      } else {
        for (size_t k = 0; k < w.cols; ++k) row[k] = weight(w, r, k);
        y[t * y_stride + r] = dot(row.data(), xt, w.cols);
      }
    }
  }
}

float exp(float x) {
  if (std::isnan(x)) return x;
  x = std::clamp(x, kExpLowest, kExpHighest);
  const float n = std::fma(x, kExpLog2E, kExpMagic) - kExpMagic;
  float r = std::fma(n, -kExpLn2High, x);
  r = std::fma(n, -kExpLn2Low, r);
  float p = kExpPoly[0];
  for (size_t i = 1; i < kExpTerms; ++i) p = std::fma(p, r, kExpPoly[i]);
  const auto power = static_cast<int>(n);
  const int half = static_cast<int>(std::floor(n / 2));
  return p * std::ldexp(1.0f, half) * std::ldexp(1.0f, power - half);
}

void rms_norm(
    const float* x, const float* weight, float eps, size_t n, float* out) {
  const float mean = dot(x, x, n) / static_cast<float>(n);
  const float factor = 1.0f / std::sqrt(mean + eps);
  for (size_t i = 0; i < n; ++i) {
    out[i] = x[i] * factor;
    if (weight != nullptr) out[i] = out[i] * weight[i];
  }
}

float silu(float g) {
  return g / (1.0f + reference::exp(-g));
}

float gelu_tanh(float g) {
  const float inner = std::fma(kGeluCubic * (g * g), g, g);
  return g / (1.0f + reference::exp(kGeluMinusTwoC * inner));
}

void rope(float* x,
          const float* cos_sin,
          size_t rotary_dims,
          bool interleaved) {
  const size_t half = rotary_dims / 2;
  for (size_t i = 0; i < half; ++i) {
    float& a = interleaved ? x[2 * i] : x[i];
    float& b = interleaved ? x[2 * i + 1] : x[i + half];
    const float ac = a * cos_sin[i];
    const float bs = b * cos_sin[half + i];
    const float as = a * cos_sin[half + i];
    const float bc = b * cos_sin[i];
    a = ac - bs;
    b = as + bc;
  }
}

size_t argmax(const float* x, size_t n) {
  size_t best = n;
  for (size_t i = 0; i < n; ++i) {
    if (std::isnan(x[i])) continue;
    if (best == n || x[i] > x[best]) best = i;
  }
  return best == n ? 0 : best;
}

namespace {

float kv_value(const std::byte* base, DType dtype, size_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, base + 4 * i, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, base + 2 * i, 2);
  return dtype == DType::kF16 ? half_to_float(bits) : bfloat_to_float(bits);
}

void attend_head(const AttentionShape& s,
                 const float* q,
                 std::span<const KvBlock> blocks,
                 size_t first_key,
                 size_t position,
                 const float* sink,
                 size_t kv_head,
                 float* out) {
  float maximum = sink ? *sink : -std::numeric_limits<float>::infinity();
  float sum = sink ? 1.0f : 0.0f;
  std::vector<float> o(s.value_dim, 0.0f);
  for (size_t b = first_key / kKvBlock; b <= position / kKvBlock; ++b) {
    std::vector<std::pair<size_t, float>> scores;  // of the keys it sees
    float top = maximum;
    for (size_t j = 0; j < kKvBlock; ++j) {
      const size_t key = b * kKvBlock + j;
      if (key < first_key || key > position) continue;
      std::vector<float> k(s.head_dim);
      for (size_t i = 0; i < s.head_dim; ++i) {
        k[i] = kv_value(blocks[b].keys,
                        s.kv_dtype,
                        (j * s.kv_heads + kv_head) * s.head_dim + i);
      }
      float score = dot(q, k.data(), s.head_dim) * s.scale;
      if (s.soft_cap > 0) {
        const float e = reference::exp(score * (2 / s.soft_cap));
        score = s.soft_cap - 2 * s.soft_cap / (e + 1);
      }
      scores.emplace_back(j, score);
      if (score > top) top = score;
    }
    const float factor = reference::exp(maximum - top);
    std::array<float, 16> acc = {};
    for (float& value : o) value = value * factor;
    for (const auto& [j, score] : scores) {
      const float e = reference::exp(score - top);
      acc[j % 16] = acc[j % 16] + e;
      for (size_t d = 0; d < s.value_dim; ++d) {
        const size_t row = j * s.kv_heads + kv_head;
        const float v =
            s.values_in_keys
                ? kv_value(blocks[b].keys, s.kv_dtype, row * s.head_dim + d)
                : kv_value(blocks[b].values, s.kv_dtype, row * s.value_dim + d);
        o[d] = std::fma(e, v, o[d]);
      }
    }
    for (size_t width = 8; width > 0; width /= 2) {
      for (size_t i = 0; i < width; ++i) acc[i] = acc[i] + acc[i + width];
    }
    sum = std::fma(sum, factor, acc[0]);
    maximum = top;
  }
  const float inverse = 1.0f / sum;
  for (size_t d = 0; d < s.value_dim; ++d) out[d] = o[d] * inverse;
}

}  // namespace

void attend(const AttentionShape& shape,
            const float* q,
            std::span<const KvBlock> blocks,
            size_t first_key,
            size_t position,
            const float* sinks,
            size_t head_begin,
            size_t head_end,
            float* out) {
  for (size_t h = head_begin; h < head_end; ++h) {
    attend_head(shape,
                q + h * shape.head_dim,
                blocks,
                first_key,
                position,
                sinks == nullptr ? nullptr : sinks + h,
                h / (shape.heads / shape.kv_heads),
                out + h * shape.value_dim);
  }
}

}  // namespace mlx_flash::kernels::reference
