// SPDX-License-Identifier: MIT

// Qwen 3 (mlx_lm/models/qwen3.py): a norm of each head of q and k, a head
// dimension of its own. Its window settings are ignored, as there.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> qwen3_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(in, {.head_dim = kGiven});
  out.intermediate_size = in.size("intermediate_size");
  out.tie_word_embeddings = in.flag("tie_word_embeddings");
  out.qk_norm = true;
  // Newer files nest rope_theta and the scaling under rope_parameters; what
  // stands at the top level wins.
  const Json nested = in.object_or_null("rope_parameters");
  out.rope_scaling = in.object_or_null("rope_scaling");
  if (nested.is_object() && !nested.empty()) {
    if (out.rope_scaling.is_null()) out.rope_scaling = nested;
    if (!in.has("rope_theta")) {
      ConfigReader parameters(nested);
      out.rope_theta = parameters.number("rope_theta");
      if (!parameters.status().ok()) return parameters.status();
    }
  }
  if (in.has("rope_theta") || !nested.is_object() || nested.empty()) {
    out.rope_theta = in.number("rope_theta");
  }
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
