// SPDX-License-Identifier: MIT

// Qwen 1.5, 2 and 2.5 (mlx_lm/models/qwen2.py): llama with biases on q, k and
// v. Its window settings are ignored, as there.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> qwen2_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(
      in, {.max_position_embeddings = 32768, .head_dim_ignored = true});
  out.intermediate_size = in.size("intermediate_size");
  out.tie_word_embeddings = in.flag_or("tie_word_embeddings", true);
  out.qkv_bias = true;
  out.rope_theta = in.number_or("rope_theta", 1000000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.rope_scaling = in.object_or_null("rope_scaling");
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
