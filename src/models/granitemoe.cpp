// SPDX-License-Identifier: MIT

// Granite with experts (mlx_lm/models/granitemoe.py): llama's attention with
// multipliers of embedding, attention, residual stream and logits.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> granitemoe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(
      in, {.max_position_embeddings = kGiven, .head_dim_ignored = true});
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", true);
  out.qkv_bias = out.o_bias = in.flag("attention_bias");
  out.rope_theta = in.number("rope_theta");
  out.rope_scaling = in.object_or_null("rope_scaling");
  out.attention_scale = in.number("attention_multiplier");
  out.embedding_multiplier =
      static_cast<float>(in.number("embedding_multiplier"));
  out.residual_multiplier =
      static_cast<float>(in.number("residual_multiplier"));
  out.logits_scaling = static_cast<float>(in.number("logits_scaling"));

  MoeConfig& moe = out.moe;
  moe.layers.assign(out.num_hidden_layers, true);
  moe.moe_intermediate_size = in.size("intermediate_size");
  moe.routing = {.experts = in.size("num_local_experts"),
                 .top_k = in.size("num_experts_per_tok"),
                 .scoring = nn::Scoring::kSoftmaxOfChosen};
  moe.block = "block_sparse_moe";
  moe.router = "router.layer";
  moe.partition = nn::Partition::kTail;
  moe.cast_sum = true;
  moe.precise_softmax = false;
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
