// SPDX-License-Identifier: MIT

// DeepSeek MoE, the first (mlx_lm/models/deepseek.py): llama's attention, a
// softmax over all experts, shared experts beside them. Never tied; of the rope
// scalings only the linear one is used, as there.

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

Json linear_scaling(ConfigReader& in) {
  const Json scaling = in.object_or_null("rope_scaling");
  if (!scaling.is_object() || scaling.empty()) return nullptr;
  const auto type = scaling.find("type");
  if (type == scaling.end() || !type->is_string()) {
    in.fail("rope_scaling.type is missing");
    return nullptr;
  }
  return type->get<std::string>() == "linear" ? scaling : Json(nullptr);
}

}  // namespace

Result<DecoderConfig> deepseek_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size_or("hidden_size", 4096);
  out.num_hidden_layers = in.size_or("num_hidden_layers", 30);
  out.intermediate_size = in.size_or("intermediate_size", 11008);
  out.num_attention_heads = in.size_or("num_attention_heads", 32);
  out.num_key_value_heads = in.size_or("num_key_value_heads", 32);
  out.head_dim = out.hidden_size / out.num_attention_heads;
  out.vocab_size = in.size_or("vocab_size", 102400);
  out.max_position_embeddings = in.size_or("max_position_embeddings", 2048);
  out.rms_norm_eps = static_cast<float>(in.number_or("rms_norm_eps", 1e-6));
  out.tie_word_embeddings = false;
  out.qkv_bias = out.o_bias = in.flag_or("attention_bias", false);
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_scaling = linear_scaling(in);
  out.windows.assign(out.num_hidden_layers, 0);
  if (!in.status().ok() || !in.has("n_routed_experts")) {
    if (!in.status().ok()) return in.status();
    return out;
  }
  MoeConfig& moe = out.moe;
  const uint32_t step = in.size_or("moe_layer_freq", 1);
  const uint32_t dense = in.whole_or("first_k_dense_replace", 0);
  moe.layers.assign(out.num_hidden_layers, false);
  for (uint32_t i = dense; i < out.num_hidden_layers; ++i) {
    moe.layers[i] = i % step == 0;
  }
  moe.moe_intermediate_size = in.size_or("moe_intermediate_size", 1407);
  moe.routing = {.experts = in.size("n_routed_experts"),
                 .top_k = in.size("num_experts_per_tok"),
                 .scoring = nn::Scoring::kSoftmax};
  if (in.has("n_shared_experts")) {
    moe.shared_intermediate_size =
        moe.moe_intermediate_size * in.size("n_shared_experts");
  }
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
