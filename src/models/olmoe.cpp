// SPDX-License-Identifier: MIT

// OLMoE (mlx_lm/models/olmoe.py): llama with one norm over all heads of q and
// one over all of k, and a softmax over all experts.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> olmoe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(in, {.num_key_value_heads = kFromHeads});
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", true);
  out.qkv_bias = out.o_bias = in.flag_or("attention_bias", false);
  out.qk_norm_whole = true;
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.rope_scaling = in.object_or_null("rope_scaling");

  MoeConfig& moe = out.moe;
  moe.layers.assign(out.num_hidden_layers, true);
  moe.moe_intermediate_size = in.size("intermediate_size");
  moe.routing = {.experts = in.size("num_experts"),
                 .top_k = in.size("num_experts_per_tok"),
                 .scoring = nn::Scoring::kSoftmax,
                 .normalise = in.flag_or("norm_topk_prob", false)};
  moe.expert_bias = in.flag_or("mlp_bias", false);
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
