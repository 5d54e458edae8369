// SPDX-License-Identifier: MIT

// Llama 1 to 3, Mistral, SmolLM2 and all that copy them
// (mlx_lm/models/llama.py; mistral is loaded as llama there too, so that a
// `sliding_window` without `layer_types` changes nothing).

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

// One window per layer from `layer_types`.
std::vector<uint32_t> read_windows(ConfigReader& in, uint32_t layers) {
  if (!in.has("layer_types")) return std::vector<uint32_t>(layers, 0);
  std::vector<uint32_t> windows = in.windows("layer_types", layers, 1);
  for (uint32_t& window : windows) {
    if (window != 0) window = in.size("sliding_window");
  }
  return windows;
}

}  // namespace

Result<DecoderConfig> llama_config(const Json& config) {
  ConfigReader in(config);
  // Only GGUF calls a mixtral llama.
  if (in.has("num_experts")) return mixtral_config(config);
  DecoderConfig out = read_sizes(in, {.num_key_value_heads = kFromHeads});
  out.intermediate_size = in.size("intermediate_size");
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", true);
  out.qkv_bias = out.o_bias = in.flag_or("attention_bias", false);
  out.mlp_bias = in.flag_or("mlp_bias", false);
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.rope_scaling = in.object_or_null("rope_scaling");
  if (!in.status().ok()) return in.status();
  out.windows = read_windows(in, out.num_hidden_layers);
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
