// SPDX-License-Identifier: MIT

// Qwen 1.5 and 2 with experts (mlx_lm/models/qwen2_moe.py): qwen2's attention,
// a softmax over all experts that is not normalised again, and a shared expert
// with a weight of its own. Never tied, rope never scaled, as there.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

// What mlx-lm refuses; what it accepts changes nothing.
void check_rope_scaling(ConfigReader& in) {
  const Json scaling = in.object_or_null("rope_scaling");
  if (!scaling.is_object() || scaling.empty()) return;
  const auto type = scaling.find("type");
  const bool linear = type != scaling.end() && type->is_string() &&
                      type->get<std::string>() == "linear";
  if (!linear || !scaling.contains("factor")) {
    in.fail("rope_scaling must have a factor and the type \"linear\"");
  }
}

}  // namespace

Result<DecoderConfig> qwen2_moe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(
      in, {.num_key_value_heads = kFromHeads, .head_dim_ignored = true});
  out.tie_word_embeddings = false;
  out.qkv_bias = true;
  out.rope_theta = in.number_or("rope_theta", 1000000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  check_rope_scaling(in);

  MoeConfig& moe = out.moe;
  moe.layers.assign(out.num_hidden_layers, true);
  moe.moe_intermediate_size = in.size("moe_intermediate_size");
  moe.routing = {.experts = in.size("num_experts"),
                 .top_k = in.size("num_experts_per_tok"),
                 .scoring = nn::Scoring::kSoftmax};
  moe.shared_intermediate_size = in.size("shared_expert_intermediate_size");
  moe.shared = "shared_expert";
  moe.shared_gate = "shared_expert_gate";
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
