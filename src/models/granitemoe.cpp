// SPDX-License-Identifier: MIT

// Granite with experts (mlx_lm/models/granitemoe.py): llama's attention with
// multipliers of embedding, attention, residual stream and logits.

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> granitemoe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size("hidden_size");
  out.num_hidden_layers = in.size("num_hidden_layers");
  out.num_attention_heads = in.size("num_attention_heads");
  out.num_key_value_heads = in.size("num_key_value_heads");
  out.head_dim = out.hidden_size / out.num_attention_heads;
  out.vocab_size = in.size("vocab_size");
  out.max_position_embeddings = in.size("max_position_embeddings");
  out.rms_norm_eps = static_cast<float>(in.number("rms_norm_eps"));
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
  out.windows.assign(out.num_hidden_layers, 0);

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
