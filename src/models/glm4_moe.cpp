// SPDX-License-Identifier: MIT

// GLM 4.5 (mlx_lm/models/glm4_moe.py): heads that rotate in part, sigmoid
// scores with a correction for choosing, groups, shared experts. Never tied,
// rope never scaled, as there.

#include <fmt/format.h>

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> glm4_moe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out =
      read_sizes(in, {.head_dim = kGiven, .max_position_embeddings = kGiven});
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
  return noaux_experts(in, std::move(out), 1);
}

}  // namespace mlx_flash::models
