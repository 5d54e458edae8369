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
#include <span>

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

// y[t] = W x[t] + b; y is [rows, linear.rows]. Tile by tile.
void linear(Context& context,
            const Linear& linear,
            const float* x,
            size_t rows,
            float* y);

// Rows `ids` of the matrix, dequantised: out is [ids.size(), linear.cols].
void embed(Context& context,
           const Linear& table,
           std::span<const uint32_t> ids,
           float* out);

// Scratch of attention() for the running softmax of `rows` rows, besides the
// rows of q and k.
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

// Rotates q and k, stores k and v, attends. q [rows, heads, head_dim],
// k, v [rows, kv_heads, head_dim], out [rows, heads, head_dim].
void attention(Context& context,
               const AttentionConfig& config,
               const Step& step,
               const float* q,
               const float* k,
               const float* v,
               float* out);

}  // namespace mlx_flash::nn::fast
