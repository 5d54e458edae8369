// SPDX-License-Identifier: MIT
#pragma once

// Multi-head latent attention (DeepSeek V2): keys and values of all heads are
// linear functions of one short vector a token, its latent, and only that is
// kept, with one rotated part of the key that all heads share.
//
// fast computes the absorbed form for every number of rows: a query is taken
// into the latent's space, attends to the latents, and what it gets is taken
// out of it into its head's values. One head of keys is in the cache, [latent,
// rotated], and its values are the latents. stock does what mlx-lm does: V2
// keeps all heads' keys and values, V3 expands latents for a prompt and absorbs
// for a single token.
//
// The engine's thread.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "nn/layers.h"

namespace mlx_flash::nn {

struct Mla {
  AttentionConfig attention;  // in the latent's space: see latent_config()
  uint32_t heads = 0;
  uint32_t latent = 0;    // kv_lora_rank
  uint32_t plain = 0;     // qk_nope_head_dim
  uint32_t rotated = 0;   // qk_rope_head_dim
  uint32_t value = 0;     // v_head_dim
  bool expanded = false;  // stock: V2's cache

  Norm input_norm;
  std::optional<Linear> q_a;  // queries by way of a short vector
  std::optional<Norm> q_a_norm;
  Linear q;     // [heads * (plain + rotated)]
  Linear kv_a;  // [latent + rotated]
  Norm kv_a_norm;

  // From the latent to keys and values. Either both stacked by head, the keys'
  // transposed ([heads * latent, plain] and [heads * value, latent]); or a
  // published kv_b_proj, whose rows are, head by head, keys then values: in
  // stock as one matrix, in fast as two for each head.
  std::optional<Linear> embed_q, unembed_out;
  std::optional<Linear> kv_b;
  std::vector<Linear> head_keys, head_values;
};

// residual stream x -> [rows, heads * value], before the output projection.
mx::array latent_attention(Context& context,
                           const Mla& mla,
                           const Step& step,
                           const mx::array& x);

// Floats of the context's scratch for a forward of `rows` rows, in fast.
size_t latent_scratch_floats(const Mla& mla, size_t hidden, size_t rows);

namespace fast {
void latent_attention(Context& context,
                      const Mla& mla,
                      const Step& step,
                      const float* x,
                      float* out);
}  // namespace fast

namespace stock {
mx::array latent_attention(Context& context,
                           const Mla& mla,
                           const Step& step,
                           const mx::array& x);
}  // namespace stock

}  // namespace mlx_flash::nn
