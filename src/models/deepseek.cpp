// SPDX-License-Identifier: MIT

// DeepSeek MoE, the first (mlx_lm/models/deepseek.py): llama's attention, a
// softmax over all experts, shared experts beside them. Never tied; of the rope
// scalings only the linear one is used, as there.

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

Json linear_scaling(ConfigReader& in) {
  const Json scaling = in.object_or_null("rope_scaling");
  if (!scaling.is_object() || scaling.empty()) return nullptr;
  auto type = scaling.find("type");
  if (type == scaling.end()) type = scaling.find("rope_type");  // GGUF
  if (type == scaling.end() || !type->is_string()) {
    in.fail("rope_scaling.type is missing");
    return nullptr;
  }
  return type->get<std::string>() == "linear" ? scaling : Json(nullptr);
}

}  // namespace

Result<DecoderConfig> deepseek_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(in, kDeepseekSizes);
  out.intermediate_size = in.size_or("intermediate_size", 11008);
  out.tie_word_embeddings = false;
  out.qkv_bias = out.o_bias = in.flag_or("attention_bias", false);
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_scaling = linear_scaling(in);
  if (!in.status().ok() || !in.has("n_routed_experts")) {
    if (!in.status().ok()) return in.status();
    return out;
  }
  MoeConfig& moe = out.moe;
  moe.layers = layers_after_dense(
      in, out.num_hidden_layers, in.size_or("moe_layer_freq", 1));
  moe.moe_intermediate_size = in.size_or("moe_intermediate_size", 1407);
  moe.routing = {.experts = in.size("n_routed_experts"),
                 .top_k = in.size("num_experts_per_tok"),
                 .scoring = nn::Scoring::kSoftmax};
  moe.shared_intermediate_size = shared_width(in, moe);
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
