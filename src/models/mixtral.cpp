// SPDX-License-Identifier: MIT

// Mixtral (mlx_lm/models/mixtral.py): llama's attention, and experts chosen by
// logit with a softmax over the chosen. rope_scaling is ignored, as there. Also
// GGUF's llama with experts.

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> mixtral_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size_or("hidden_size", 4096);
  out.num_hidden_layers = in.size_or("num_hidden_layers", 32);
  out.intermediate_size = in.size_or("intermediate_size", 14336);
  out.num_attention_heads = in.size_or("num_attention_heads", 32);
  out.num_key_value_heads = in.size_or("num_key_value_heads", 8);
  out.head_dim = out.hidden_size / out.num_attention_heads;
  out.vocab_size = in.size_or("vocab_size", 32000);
  out.max_position_embeddings = in.size_or("max_position_embeddings", 0);
  out.rms_norm_eps = static_cast<float>(in.number_or("rms_norm_eps", 1e-5));
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", false);
  out.rope_theta = in.number_or("rope_theta", 1e6);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.windows.assign(out.num_hidden_layers, 0);

  MoeConfig& moe = out.moe;
  moe.layers.assign(out.num_hidden_layers, true);
  moe.block = "block_sparse_moe";
  moe.moe_intermediate_size = out.intermediate_size;
  moe.routing = {
      .experts = in.size_or("num_local_experts", in.size_or("num_experts", 8)),
      .top_k = in.size_or("num_experts_per_tok", 2),
      .scoring = nn::Scoring::kSoftmaxOfChosen};
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
