// SPDX-License-Identifier: MIT

// DeepSeek V2 (mlx_lm/models/deepseek_v2.py): latent attention, yarn always, a
// softmax over all experts, of which groups may be left out. Never tied.

#include <cmath>

#include "models/decoder_sizes.h"
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
  moe.layers = layers_after_dense(in, layers, in.size_or("moe_layer_freq", 1));
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
  moe.shared_intermediate_size = shared_width(in, moe);
  return moe;
}

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

}  // namespace

DecoderConfig latent_decoder(ConfigReader& in) {
  DecoderConfig out = read_sizes(in, kDeepseekSizes);
  out.intermediate_size = in.size_or("intermediate_size", 11008);
  out.tie_word_embeddings = false;
  out.rope_theta = in.number_or("rope_theta", 10000);
  read_latent_attention(in, out);
  return out;
}

Result<DecoderConfig> deepseek2_config(const Json& config) {
  const auto scoring = config.find("scoring_func");
  const bool sigmoid = scoring != config.end() && *scoring == "sigmoid";
  return sigmoid ? deepseek_v3_config(config) : deepseek_v2_config(config);
}

Result<DecoderConfig> deepseek_v2_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = latent_decoder(in);
  out.rope_scaling = yarn_scaling(in);
  out.mla.expanded = true;
  if (!in.status().ok()) return in.status();
  if (in.has("n_routed_experts")) {
    out.moe = experts(in, out.num_hidden_layers);
  }
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
