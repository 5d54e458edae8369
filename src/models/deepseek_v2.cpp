// SPDX-License-Identifier: MIT

// DeepSeek V2 (mlx_lm/models/deepseek_v2.py): latent attention, yarn always, a
// softmax over all experts, of which groups may be left out. Never tied.

#include <cmath>

#include "models/config_reader.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

// rope_scaling is taken for yarn's whatever its type.
Json yarn_scaling(ConfigReader& in) {
  Json scaling = in.object_or_null("rope_scaling");
  if (!scaling.is_object() || !scaling.contains("factor")) {
    in.fail("rope_scaling.factor is missing");
    return nullptr;
  }
  scaling["type"] = "yarn";
  return scaling;
}

MoeConfig experts(ConfigReader& in, uint32_t layers) {
  MoeConfig moe;
  const uint32_t step = in.size_or("moe_layer_freq", 1);
  const uint32_t dense = in.whole_or("first_k_dense_replace", 0);
  moe.layers.assign(layers, false);
  for (uint32_t i = dense; i < layers; ++i) moe.layers[i] = i % step == 0;
  moe.moe_intermediate_size = in.size_or("moe_intermediate_size", 1407);
  moe.routing = {
      .experts = in.size("n_routed_experts"),
      .top_k = in.size("num_experts_per_tok"),
      .scoring = nn::Scoring::kSoftmax,
      .scale = static_cast<float>(in.number_or("routed_scaling_factor", 1.0)),
      .group_score = nn::GroupScore::kBest};
  const Json* method = in.find("topk_method");
  if (method != nullptr && *method == Json("group_limited_greedy")) {
    moe.routing.groups = in.size("n_group");
    moe.routing.groups_kept = in.size("topk_group");
  }
  if (in.has("n_shared_experts")) {
    moe.shared_intermediate_size =
        moe.moe_intermediate_size * in.size("n_shared_experts");
  }
  return moe;
}

}  // namespace

void read_latent_attention(ConfigReader& in, DecoderConfig& out) {
  MlaConfig& mla = out.mla;
  mla.kv_lora_rank = in.size_or("kv_lora_rank", 512);
  // A null is no rank; without the field it is mlx-lm's default.
  mla.q_lora_rank =
      in.given("q_lora_rank") ? in.whole_or("q_lora_rank", 0) : 1536;
  mla.qk_rope_head_dim = in.size_or("qk_rope_head_dim", 64);
  mla.qk_nope_head_dim = in.size_or("qk_nope_head_dim", 128);
  mla.v_head_dim = in.size_or("v_head_dim", 128);
  out.num_key_value_heads = out.num_attention_heads;
  out.head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim;
  out.rope_dims = mla.qk_rope_head_dim;
  out.rope_traditional = true;
  out.qkv_bias = out.o_bias = in.flag_or("attention_bias", false);
  out.attention_scale = std::pow(out.head_dim, -0.5);
  const Json scaling = in.object_or_null("rope_scaling");
  if (!scaling.is_object()) return;
  ConfigReader parameters(scaling);
  const double all_dim = parameters.number_or("mscale_all_dim", 0);
  const double factor = parameters.number_or("factor", 1);
  if (!parameters.status().ok()) in.fail("rope_scaling is not usable");
  if (all_dim == 0 || factor <= 1) return;
  const double mscale = 0.1 * all_dim * std::log(factor) + 1.0;
  out.attention_scale = out.attention_scale * mscale * mscale;
}

Result<DecoderConfig> deepseek_v2_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out;
  out.hidden_size = in.size_or("hidden_size", 4096);
  out.num_hidden_layers = in.size_or("num_hidden_layers", 30);
  out.intermediate_size = in.size_or("intermediate_size", 11008);
  out.num_attention_heads = in.size_or("num_attention_heads", 32);
  out.vocab_size = in.size_or("vocab_size", 102400);
  out.max_position_embeddings = in.size_or("max_position_embeddings", 2048);
  out.rms_norm_eps = static_cast<float>(in.number_or("rms_norm_eps", 1e-6));
  out.tie_word_embeddings = false;
  out.rope_theta = in.number_or("rope_theta", 10000);
  out.rope_scaling = yarn_scaling(in);
  read_latent_attention(in, out);
  out.mla.expanded = true;
  if (!in.status().ok()) return in.status();
  out.windows.assign(out.num_hidden_layers, 0);
  if (in.has("n_routed_experts")) {
    out.moe = experts(in, out.num_hidden_layers);
  }
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
