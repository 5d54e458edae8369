// SPDX-License-Identifier: MIT

// Qwen 1.5 and 2 with experts (mlx_lm/models/qwen2_moe.py): qwen2's attention,
// a softmax over all experts that is not normalised again, and a shared expert
// with a weight of its own. Never tied, rope never scaled, as there.

#include "models/config_reader.h"
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
  DecoderConfig out;
  out.hidden_size = in.size("hidden_size");
  out.num_hidden_layers = in.size("num_hidden_layers");
  out.num_attention_heads = in.size("num_attention_heads");
  out.num_key_value_heads =
      in.size_or("num_key_value_heads", out.num_attention_heads);
  out.head_dim = out.hidden_size / out.num_attention_heads;
  out.vocab_size = in.size("vocab_size");
  out.max_position_embeddings = in.size_or("max_position_embeddings", 0);
  out.rms_norm_eps = static_cast<float>(in.number("rms_norm_eps"));
  out.tie_word_embeddings = false;
  out.qkv_bias = true;
  out.rope_theta = in.number_or("rope_theta", 1000000);
  out.rope_traditional = in.flag_or("rope_traditional", false);
  out.windows.assign(out.num_hidden_layers, 0);
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
