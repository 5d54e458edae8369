// SPDX-License-Identifier: MIT
#pragma once

// The experts of a model, as data: what DecoderConfig says beyond a dense
// decoder. Fields of config.json keep their names.

#include <cstdint>
#include <string>
#include <vector>

#include "nn/moe.h"

namespace mlx_flash::models {

struct MoeConfig {
  // By layer, which have experts; the others have an MLP. Empty: none has.
  std::vector<bool> layers;

  uint32_t moe_intermediate_size = 0;  // of one expert
  nn::Routing routing;
  bool expert_bias = false;  // each projection of an expert adds a vector
  nn::Activation activation = nn::Activation::kSilu;

  // Tensors: "model.layers.N.<block>", and below it the router, and the vector
  // that is added to its scores for choosing ("": none).
  std::string block = "mlp";
  std::string router = "gate";
  bool router_bias = false;
  std::string correction;

  // Width of the MLP beside the experts; 0: none. `shared_gate`: its weight is
  // computed from x ("": it is 1).
  uint32_t shared_intermediate_size = 0;
  std::string shared = "shared_experts";
  std::string shared_gate;

  // Stock (nn/moe.h).
  nn::Partition partition = nn::Partition::kHeadOfNegated;
  bool cast_sum = false;
  bool precise_softmax = true;

  bool any() const { return !layers.empty(); }
  bool has_experts(uint32_t layer) const { return any() && layers[layer]; }
};

}  // namespace mlx_flash::models
