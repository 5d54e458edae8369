// SPDX-License-Identifier: MIT
#pragma once

// The kernels' contracts as plain scalar code, one number at a time, in the
// order the headers state. Tests demand equal bits. Written from the contracts
// and format descriptions, not from the kernels. Slow; for tests only.

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "base/weight_format.h"
#include "kernels/attention.h"
#include "kernels/matmul.h"

namespace mlx_flash::kernels::reference {

// Every format of kernels/formats.inc.
std::vector<WeightFormat> all_formats();

float half_to_float(uint16_t bits);
float bfloat_to_float(uint16_t bits);
uint16_t float_to_half(float value);    // to nearest even
uint16_t float_to_bfloat(float value);  // to nearest even

// Value k of row r of an integer-coded format: scale * code, or
// fma(scale, code, offset) where there is an offset.
struct CodedWeight {
  float scale = 0;
  int code = 0;  // less the format's zero
  std::optional<float> offset;
};
CodedWeight coded_weight(const WeightRows& w, size_t r, size_t k);

// Value k of row r of any format.
float weight(const WeightRows& w, size_t r, size_t k);

// The canonical dot product in float32 (A of kernels/matmul.h).
float dot(const float* a, const float* b, size_t n);

void matmul(const WeightRows& w,
            size_t row_begin,
            size_t row_end,
            const float* x,
            size_t x_stride,
            size_t tokens,
            float* y,
            size_t y_stride);

float exp(float x);
void rms_norm(
    const float* x, const float* weight, float eps, size_t n, float* out);
float silu(float g);
float gelu_tanh(float g);
void rope(float* x, const float* cos_sin, size_t rotary_dims, bool interleaved);
size_t argmax(const float* x, size_t n);

void attend(const AttentionShape& shape,
            const float* q,
            std::span<const KvBlock> blocks,
            size_t first_key,
            size_t position,
            const float* sinks,
            size_t head_begin,
            size_t head_end,
            float* out);

}  // namespace mlx_flash::kernels::reference
