// SPDX-License-Identifier: MIT

// DeepSeek V3 and R1 (mlx_lm/models/deepseek_v3.py): latent attention with a
// compressed cache, `noaux_tc` experts. Never tied.

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> deepseek_v3_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size_or("hidden_size", 4096);
  out.num_hidden_layers = in.size_or("num_hidden_layers", 30);
  out.intermediate_size = in.size_or("intermediate_size", 11008);
  out.num_attention_heads = in.size_or("num_attention_heads", 32);
  out.vocab_size = in.size_or("vocab_size", 102400);
  out.max_position_embeddings = in.size_or("max_position_embeddings", 2048);
  out.rms_norm_eps = static_cast<float>(in.number_or("rms_norm_eps", 1e-6));
  out.tie_word_embeddings = false;
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_scaling = in.object_or_null("rope_scaling");
  read_latent_attention(in, out);
  if (!in.status().ok()) return in.status();
  out.windows.assign(out.num_hidden_layers, 0);
  if (!in.has("n_routed_experts")) return out;
  return noaux_experts(in, std::move(out), in.size_or("moe_layer_freq", 1));
}

}  // namespace mlx_flash::models
