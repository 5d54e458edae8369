// SPDX-License-Identifier: MIT

// Mixtral (mlx_lm/models/mixtral.py): llama's attention, and experts chosen by
// logit with a softmax over the chosen. rope_scaling is ignored, as there. Also
// GGUF's llama with experts.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> mixtral_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(in,
                                 {.hidden_size = 4096,
                                  .num_hidden_layers = 32,
                                  .num_attention_heads = 32,
                                  .num_key_value_heads = 8,
                                  .vocab_size = 32000,
                                  .rms_norm_eps = 1e-5,
                                  .head_dim_ignored = true});
  out.intermediate_size = in.size_or("intermediate_size", 14336);
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", false);
  out.rope_theta = in.number_or("rope_theta", 1e6);
  out.rope_traditional = in.flag_or("rope_traditional", false);

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
