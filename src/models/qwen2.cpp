// SPDX-License-Identifier: MIT

// Qwen 1.5, 2 and 2.5 (mlx_lm/models/qwen2.py): llama with biases on q, k and
// v. Its window settings are ignored, as there.

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> qwen2_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size("hidden_size");
  out.num_hidden_layers = in.size("num_hidden_layers");
  out.intermediate_size = in.size("intermediate_size");
  out.num_attention_heads = in.size("num_attention_heads");
  out.num_key_value_heads = in.size("num_key_value_heads");
  out.head_dim = out.hidden_size / out.num_attention_heads;
  out.vocab_size = in.size("vocab_size");
  out.max_position_embeddings = in.size_or("max_position_embeddings", 32768);
  out.rms_norm_eps = static_cast<float>(in.number("rms_norm_eps"));
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", true);
  out.qkv_bias = true;
  out.rope_theta = in.number_or("rope_theta", 1000000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.rope_scaling = in.object_or_null("rope_scaling");
  if (!in.status().ok()) return in.status();
  out.windows.assign(out.num_hidden_layers, 0);
  return out;
}

}  // namespace mlx_flash::models
