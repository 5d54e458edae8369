// SPDX-License-Identifier: MIT

// GLM 4.5 (mlx_lm/models/glm4_moe.py): heads that rotate in part, sigmoid
// scores with a correction for choosing, groups, shared experts. Never tied,
// rope never scaled, as there.

#include <fmt/format.h>

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> glm4_moe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size("hidden_size");
  out.num_hidden_layers = in.size("num_hidden_layers");
  out.num_attention_heads = in.size("num_attention_heads");
  out.num_key_value_heads = in.size("num_key_value_heads");
  out.head_dim = in.size("head_dim");
  out.vocab_size = in.size("vocab_size");
  out.max_position_embeddings = in.size("max_position_embeddings");
  out.rms_norm_eps = static_cast<float>(in.number("rms_norm_eps"));
  out.tie_word_embeddings = false;
  out.qkv_bias = in.flag("attention_bias");
  out.qk_norm = in.flag("use_qk_norm");
  out.rope_theta = in.number("rope_theta");
  const double part = in.number("partial_rotary_factor");
  if (!in.status().ok()) return in.status();
  if (!(part > 0 && part <= 1)) {
    in.fail(fmt::format("partial_rotary_factor is {}", part));
    return in.status();
  }
  out.rope_dims = static_cast<uint32_t>(out.head_dim * part);
  out.windows.assign(out.num_hidden_layers, 0);
  return noaux_experts(in, std::move(out), 1);
}

}  // namespace mlx_flash::models
