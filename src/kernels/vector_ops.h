// SPDX-License-Identifier: MIT
#pragma once

// The small operations between matrix products, row by row, on float32. Every
// sum over a row has the canonical order of kernels/matmul.h (sixteen
// accumulators by index modulo sixteen, the same tree), so nothing depends on
// the instruction set, the batch or the threads. Never allocates.

#include <cstddef>
#include <cstdint>

namespace mlx_flash::kernels {

// The machine has an instruction set these kernels can run on.
bool supported();
// Name of the instruction set in use: "AVX2", "AVX3_ZEN4", "NEON", ...
const char* target_name();

// out[i] = x[i] * (1 / sqrt(mean(x^2) + eps)) * weight[i]; weight may be null
// (all ones). out may be x.
void rms_norm(
    const float* x, const float* weight, float eps, size_t n, float* out);

// out[i] = a[i] + b[i]; out may be a or b.
void add(const float* a, const float* b, size_t n, float* out);

// Activations of a gated MLP: out[i] = act(gate[i]) * up[i]; out may be gate.
//   silu(g) = g / (1 + exp(-g))
//   gelu_tanh(g) = 0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3)))
void silu_mul(const float* gate, const float* up, size_t n, float* out);
void gelu_tanh_mul(const float* gate, const float* up, size_t n, float* out);
// The clipped form of gpt_oss, g = min(gate, limit), u = up clipped to
// [-limit, limit]: out[i] = (u + 1) * g / (1 + exp(-alpha * g)).
void swiglu_clipped(const float* gate,
                    const float* up,
                    float alpha,
                    float limit,
                    size_t n,
                    float* out);

// out[i] = fma(w, x[i], out[i]).
void add_scaled(const float* x, float w, size_t n, float* out);

// x[i] = exp(x[i] - max) / sum of them, the sum in the canonical order.
void softmax(float* x, size_t n);

// x[i] = 1 / (1 + exp(-x[i])).
void sigmoid(float* x, size_t n);

// Rotary embedding of one head in place (Su et al., RoFormer). `cos_sin` holds
// cos then sin of position * inv_freq[i], each `rotary_dims / 2` long. Pairs
// are (x[i], x[i + rotary_dims / 2]), or (x[2i], x[2i + 1]) if `interleaved`
// (mlx-lm: traditional). Values from rotary_dims on stay as they are.
//   a' = a * cos - b * sin,  b' = a * sin + b * cos
// with each product rounded, then the sum (no fusing).
void rope(float* x, const float* cos_sin, size_t rotary_dims, bool interleaved);

// What one head of q or k goes through before it attends.
struct HeadTurn {
  const float* weight = nullptr;  // of rms_norm() over the head; null: no norm
  float eps = 0;
  float scale = 1;                 // of the values that turn, before they do
  const float* cos_sin = nullptr;  // as for rope(); null: nothing turns
  size_t dims = 0;                 // values that scale and turn
  bool interleaved = false;
};

// rms_norm(), the scale and rope() of a head of n values in place, in one pass
// after the sum of squares. The same bits as one after the other.
void turn_head(const HeadTurn& turn, size_t n, float* x);

// Index of the largest value, the first of equals. NaN never wins; all NaN
// gives 0. REQUIRES: n > 0.
size_t argmax(const float* x, size_t n);

}  // namespace mlx_flash::kernels
