// SPDX-License-Identifier: MIT
#pragma once

// The blocks models are written with. Each does the same mathematics in two
// ways: fast (our kernels, float32, one fused node of the graph) or stock
// (MLX's operations in mlx-lm's order and dtype), as the context says. Models
// never ask which.
//
// Arrays: fast, activations are [tokens, width]; stock, [1, tokens, width].
// The engine's thread.

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kv/kv_cache.h"
#include "nn/context.h"
#include "nn/mlx.h"
#include "nn/ranking.h"
#include "nn/rope.h"
#include "nn/stock_kv.h"
#include "nn/weight_store.h"

namespace mlx_flash::nn {

// x / sqrt(mean(x^2) + eps) * weight.
struct Norm {
  SmallTensor weight;
  float eps = 1e-5f;
};

// kSwigluClipped: gpt_oss (kernels/vector_ops.h, swiglu_clipped).
enum class Activation { kSilu, kGeluTanh, kSwigluClipped };

struct AttentionConfig {
  uint32_t layer = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t value_dim = 0;  // 0: as head_dim
  float scale = 1;
  uint32_t window = 0;         // 0: sees everything
  const Rope* rope = nullptr;  // null: no positions
  std::optional<Norm> q_norm;  // over each head, before rope
  std::optional<Norm> k_norm;
  bool norm_whole = false;           // those are over all heads at once
  std::optional<SmallTensor> sinks;  // one logit of each head
  // KvLayout's: a value is the first value_dim numbers of its key.
  bool values_in_keys = false;
};

// Where a row of a fast forward belongs.
struct RowPlace {
  KvCache* kv = nullptr;
  uint32_t position = 0;
};

// The rows of one cache in a forward: positions [begin, end).
struct KvSpan {
  KvCache* kv = nullptr;
  uint32_t begin = 0;
  uint32_t end = 0;
};

// One forward: the rows, and what is computed once for all layers.
struct Step {
  std::span<const uint32_t> tokens;
  std::span<const RowPlace> rows;  // fast, one for each token
  std::span<const KvSpan> caches;  // fast, one for each session in the rows
  StockKv* stock_kv = nullptr;     // stock, of the one session
  // Fast: tables of Rope::fill for the rows, one for each rope in use.
  struct RopeTable {
    const Rope* rope = nullptr;
    std::vector<float> values;
  };
  std::vector<RopeTable> rope_tables;

  const float* rope_table(const Rope* rope) const;
};

// Fills step.rope_tables for `rope` (fast only).
void prepare_rope(const Context& context, const Rope& rope, Step& step);

// The tokens' rows of the table, times `multiplier`.
mx::array embed(Context& context,
                const Linear& table,
                const Step& step,
                float multiplier = 1);

mx::array rms_norm(Context& context, const Norm& norm, const mx::array& x);

// residual + multiplier * (W x + b).
mx::array linear_add(Context& context,
                     const Linear& matrix,
                     const mx::array& x,
                     const mx::array& residual,
                     float multiplier = 1);

// A layer's attention: norm in front, projections, output projection.
struct AttentionBlock {
  Norm norm;
  Linear q, k, v;
  AttentionConfig config;
  Linear o;
};

// x + multiplier * O attention(Q n, K n, V n) with n = norm(x) and the cache.
// The block outlives the evaluation.
mx::array add_attention(Context& context,
                        const AttentionBlock& block,
                        const Step& step,
                        const mx::array& x,
                        float multiplier = 1);

// Floats of the context's scratch that takes, in fast.
size_t attention_scratch_floats(const AttentionConfig& config,
                                size_t hidden,
                                size_t rows);

// A layer's gated MLP.
struct Mlp {
  Norm norm;
  Linear gate, up, down;
  Activation activation = Activation::kSilu;
};

// x + multiplier * down(activation(gate n) * up n) with n = norm(x). The MLP
// outlives the evaluation.
mx::array add_mlp(Context& context,
                  const Mlp& mlp,
                  const mx::array& x,
                  float multiplier = 1);

// Floats of the context's scratch that takes, in fast.
size_t mlp_scratch_floats(size_t hidden, size_t inner, size_t rows);

// W norm(x) / divisor: the logits. Fast also ranks them if `ranking` is not
// null, which has x's rows and outlives the evaluation.
mx::array head(Context& context,
               const Norm& norm,
               const Linear& matrix,
               float divisor,
               const mx::array& x,
               Ranking* ranking = nullptr);

// Rows `indices` of x, in that order.
mx::array take_rows(Context& context,
                    const mx::array& x,
                    std::span<const uint32_t> indices);

}  // namespace mlx_flash::nn
