// SPDX-License-Identifier: MIT

// DeepSeek V3 and R1 (mlx_lm/models/deepseek_v3.py): latent attention with a
// compressed cache, `noaux_tc` experts. Never tied.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> deepseek_v3_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = latent_decoder(in);
  out.rope_scaling = in.object_or_null("rope_scaling");
  if (!in.status().ok()) return in.status();
  if (!in.has("n_routed_experts")) return out;
  return noaux_experts(in, std::move(out), in.size_or("moe_layer_freq", 1));
}

}  // namespace mlx_flash::models
