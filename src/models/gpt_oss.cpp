// SPDX-License-Identifier: MIT

// gpt-oss (mlx_lm/models/gpt_oss.py): biases everywhere, a sink for each head,
// windows in every second layer, experts with a clipped activation.

#include <algorithm>

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

// mlx-lm's default: windows in even layers.
std::vector<uint32_t> windows(ConfigReader& in, uint32_t layers) {
  const uint32_t window = in.size_or("sliding_window", 128);
  std::vector<uint32_t> out(layers, 0);
  if (in.has("layer_types")) {
    out = in.windows("layer_types", layers, window);
  } else {
    if (layers % 2 != 0) in.fail("layer_types is missing");
    for (uint32_t i = 0; i < layers; i += 2) out[i] = window;
  }
  if (std::count(out.begin(), out.end(), 0u) == 0 ||
      std::count(out.begin(), out.end(), window) == 0) {
    in.fail(
        "layer_types must have layers of both kinds, sliding_attention and "
        "full_attention");
  }
  return out;
}

}  // namespace

Result<DecoderConfig> gpt_oss_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(in,
                                 {.hidden_size = 2880,
                                  .num_hidden_layers = 36,
                                  .num_attention_heads = 64,
                                  .num_key_value_heads = 8,
                                  .head_dim = 64,
                                  .vocab_size = 201088,
                                  .rms_norm_eps = 1e-5});
  out.tie_word_embeddings = false;
  out.qkv_bias = out.o_bias = true;
  out.attention_sinks = true;
  out.rope_theta = in.number_or("rope_theta", 150000);
  out.rope_scaling = in.object_or_null("rope_scaling");
  if (!in.status().ok()) return in.status();
  out.windows = windows(in, out.num_hidden_layers);

  MoeConfig& moe = out.moe;
  moe.layers.assign(out.num_hidden_layers, true);
  moe.moe_intermediate_size = in.size_or("intermediate_size", 2880);
  moe.routing = {.experts = in.size_or("num_local_experts", 128),
                 .top_k = in.size_or("num_experts_per_tok", 4),
                 .scoring = nn::Scoring::kSoftmaxOfChosen};
  moe.expert_bias = true;
  moe.activation = nn::Activation::kSwigluClipped;
  moe.router = "router";
  moe.router_bias = true;
  moe.partition = nn::Partition::kTail;
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
