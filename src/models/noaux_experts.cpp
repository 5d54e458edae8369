// SPDX-License-Identifier: MIT

// The experts of GLM 4.5 and DeepSeek V3 (`noaux_tc`): sigmoid scores, a
// correction that only chooses, groups, an MLP beside them.

#include "models/config_reader.h"
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
  const uint32_t dense = in.whole_or("first_k_dense_replace", 0);
  moe.layers.assign(out.num_hidden_layers, false);
  for (uint32_t i = dense; i < out.num_hidden_layers; ++i) {
    moe.layers[i] = i % layer_freq == 0;
  }
  if (dense > 0 || layer_freq > 1) {
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
  if (in.has("n_shared_experts")) {
    moe.shared_intermediate_size =
        moe.moe_intermediate_size * in.size("n_shared_experts");
  }
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
