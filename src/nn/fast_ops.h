// SPDX-License-Identifier: MIT
#pragma once

// The blocks of a model in our own arithmetic: float32 rows in and out, weights
// through the tile stream, the kernels of kernels/ on the pool. Plain
// functions on pointers; nn/layers.cpp makes nodes of MLX's graph of them.
//
// Called on MLX's stream thread. A failure (disk, interruption) is recorded in
// the context; outputs are then undefined and the caller throws them away.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "kernels/matmul.h"
#include "kv/kv_cache.h"
#include "nn/context.h"
#include "nn/layers.h"

namespace mlx_flash::nn::fast {

// out[t] = rms_norm(x[t]) for rows of n values.
void norm_rows(Context& context,
               const Norm& norm,
               const float* x,
               size_t rows,
               size_t n,
               float* out);

// Rows of x that several matrices multiply, made ready for the kernels once
// for each format in a row. They lie in Context::prepared(): one Input is in
// use at a time.
class Input {
 public:
  // x: [rows, cols], which outlives the input.
  Input(Context& context, const float* x, size_t rows, size_t cols)
      : context_(context), input_{x, cols, rows, nullptr} {}

  size_t rows() const { return input_.tokens; }
  const kernels::MatmulInput& of(const WeightFormat& format);

 private:
  Context& context_;
  std::optional<WeightFormat> format_;
  kernels::MatmulInput input_;
};

// y[t] = W x[t] + b; y is [rows, linear.rows]. Tile by tile.
void linear(Context& context, const Linear& linear, Input& x, float* y);
void linear(Context& context,
            const Linear& linear,
            const float* x,
            size_t rows,
            float* y);

// y[t] = residual[t] + multiplier * (W x[t] + b), added where a tile's
// products come out.
void linear_add(Context& context,
                const Linear& linear,
                const float* x,
                size_t rows,
                float multiplier,
                const float* residual,
                float* y);

// y[t] = (W x[t] + b) / divisor, each row's best products kept on the way
// unless `ranking` is null.
void head(Context& context,
          const Linear& linear,
          const float* x,
          size_t rows,
          float divisor,
          Ranking* ranking,
          float* y);

// gate[i] = activation(gate[i]) * up[i].
void activate(Activation activation, const float* up, size_t n, float* gate);

// out[t] = activation(gate x[t]) * up x[t], [rows, gate.rows]. Products of `up`
// go into it where they come out, a tile's rows at a time: up's outputs are
// never there as a whole.
void gated(Context& context,
           const Linear& gate,
           const Linear& up,
           Activation activation,
           Input& x,
           float* out);

// Rows `ids` of the matrix, dequantised: out is [ids.size(), linear.cols].
void embed(Context& context,
           const Linear& table,
           std::span<const uint32_t> ids,
           float* out);

// Floats of the running softmax of `rows` rows.
size_t attention_state_floats(const AttentionConfig& config, size_t rows);

// Attends with queries [rows, heads, head_dim] that are rotated already, their
// keys and values stored. `states`: attention_state_floats(). out [rows, heads,
// value_dim].
void attend_placed(Context& context,
                   const AttentionConfig& config,
                   const Step& step,
                   const float* queries,
                   float* states,
                   float* out);

// Norms and rotates q and k in place, stores k and v, attends. q [rows, heads,
// head_dim], k, v [rows, kv_heads, head_dim], out [rows, heads, head_dim].
// `states`: attention_state_floats().
void attention(Context& context,
               const AttentionConfig& config,
               const Step& step,
               float* q,
               float* k,
               const float* v,
               float* states,
               float* out);

}  // namespace mlx_flash::nn::fast
