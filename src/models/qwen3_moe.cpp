// SPDX-License-Identifier: MIT

// Qwen 3 with experts (mlx_lm/models/qwen3_moe.py): qwen3's attention, a
// softmax over all experts. Rope is never scaled, as there.

#include <algorithm>

#include "models/decoder_sizes.h"
#include "models/registry.h"

namespace mlx_flash::models {
namespace {

// Every decoder_sparse_step-th layer, but for those of mlp_only_layers.
std::vector<bool> expert_layers(ConfigReader& in, uint32_t layers) {
  std::vector<bool> out(layers, false);
  const uint32_t step = in.size("decoder_sparse_step");
  for (uint32_t i = step - 1; i < layers; i += step) out[i] = true;
  const Json* dense = in.find("mlp_only_layers");
  if (dense == nullptr || !dense->is_array()) {
    in.fail("mlp_only_layers must be a list of layers");
    return out;
  }
  for (const Json& layer : *dense) {
    if (!layer.is_number_unsigned()) {
      in.fail("mlp_only_layers must be a list of layers");
    } else if (layer.get<uint64_t>() < layers) {
      out[layer.get<uint64_t>()] = false;
    }
  }
  return out;
}

}  // namespace

Result<DecoderConfig> qwen3_moe_config(const Json& config) {
  ConfigReader in(config);
  DecoderConfig out = read_sizes(in, {.head_dim = kGiven});
  out.tie_word_embeddings = in.flag("tie_word_embeddings");
  out.qk_norm = true;
  out.rope_theta = in.number("rope_theta");
  if (!in.status().ok()) return in.status();

  MoeConfig& moe = out.moe;
  moe.layers = expert_layers(in, out.num_hidden_layers);
  if (std::find(moe.layers.begin(), moe.layers.end(), false) !=
      moe.layers.end()) {
    out.intermediate_size = in.size("intermediate_size");
  }
  moe.moe_intermediate_size = in.size("moe_intermediate_size");
  moe.routing = {.experts = in.size("num_experts"),
                 .top_k = in.size("num_experts_per_tok"),
                 .scoring = nn::Scoring::kSoftmax,
                 .normalise = in.flag("norm_topk_prob")};
  moe.partition = nn::Partition::kTail;
  moe.cast_sum = true;
  if (!in.status().ok()) return in.status();
  return out;
}

}  // namespace mlx_flash::models
