// SPDX-License-Identifier: MIT

// The experts of GLM 4.5 and DeepSeek V3 (`noaux_tc`): sigmoid scores, a
// correction that only chooses, groups, an MLP beside them.

#include <algorithm>

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {

Result<DecoderConfig> noaux_experts(ConfigReader& in,
                                    DecoderConfig out,
                                    uint32_t layer_freq) {
  const Json* method = in.find("topk_method");
  if (method != nullptr && *method != Json("noaux_tc")) {
    in.fail("topk_method must be \"noaux_tc\"");
  }
  MoeConfig& moe = out.moe;
  moe.layers = layers_after_dense(in, out.num_hidden_layers, layer_freq);
  if (std::find(moe.layers.begin(), moe.layers.end(), false) !=
      moe.layers.end()) {
    out.intermediate_size = in.size("intermediate_size");
  }
  moe.moe_intermediate_size = in.size("moe_intermediate_size");
  moe.routing = {
      .experts = in.size("n_routed_experts"),
      .top_k = in.size("num_experts_per_tok"),
      .scoring = nn::Scoring::kSigmoid,
      .scale = static_cast<float>(in.number_or("routed_scaling_factor", 1.0)),
      .groups = in.size_or("n_group", 1),
      .groups_kept = in.size_or("topk_group", 1),
      .group_score = nn::GroupScore::kTwoBest};
  moe.routing.normalise =
      in.flag_or("norm_topk_prob", true) && moe.routing.top_k > 1;
  moe.correction = "gate.e_score_correction_bias";
  moe.cast_sum = true;
  moe.shared_intermediate_size = shared_width(in, moe);
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
