// SPDX-License-Identifier: MIT

// OLMoE (mlx_lm/models/olmoe.py): llama with one norm over all heads of q and
// one over all of k, and a softmax over all experts.

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> olmoe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size("hidden_size");
  out.num_hidden_layers = in.size("num_hidden_layers");
  out.num_attention_heads = in.size("num_attention_heads");
  out.num_key_value_heads =
      in.size_or("num_key_value_heads", out.num_attention_heads);
  out.head_dim =
      in.size_or("head_dim", out.hidden_size / out.num_attention_heads);
  out.vocab_size = in.size("vocab_size");
  out.max_position_embeddings = in.size_or("max_position_embeddings", 0);
  out.rms_norm_eps = static_cast<float>(in.number("rms_norm_eps"));
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", true);
  out.qkv_bias = out.o_bias = in.flag_or("attention_bias", false);
  out.qk_norm_whole = true;
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.rope_scaling = in.object_or_null("rope_scaling");
  out.windows.assign(out.num_hidden_layers, 0);

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
