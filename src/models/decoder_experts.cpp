// SPDX-License-Identifier: MIT

// The experts of a decoder's layers.

#include <fmt/format.h>

#include <algorithm>

#include "models/decoder.h"

namespace mlx_flash::models {

Status Decoder::build_experts(uint32_t index,
                              nn::WeightStore& store,
                              Layer& layer) {
  const DecoderConfig& c = config_;
  const MoeConfig& moe = c.moe;
  const std::string base = fmt::format("model.layers.{}.{}", index, moe.block);
  nn::MoeBlock& block = layer.moe.emplace();
  block.norm = layer.mlp.norm;
  block.routing = moe.routing;
  block.activation = moe.activation;
  block.partition = moe.partition;
  block.cast_sum = moe.cast_sum;
  block.precise_softmax = moe.precise_softmax;
  block.residual_scale = c.residual_multiplier;

  // In the order of use.
  FLASH_ASSIGN_OR_RETURN(block.router,
                         store.linear(fmt::format("{}.{}", base, moe.router),
                                      moe.routing.experts,
                                      c.hidden_size,
                                      moe.router_bias));
  if (!moe.correction.empty()) {
    FLASH_ASSIGN_OR_RETURN(
        block.correction,
        store.small(fmt::format("{}.{}", base, moe.correction),
                    moe.routing.experts));
  }
  FLASH_ASSIGN_OR_RETURN(block.experts,
                         store.experts(base,
                                       {.count = moe.routing.experts,
                                        .active = moe.routing.top_k,
                                        .hidden = c.hidden_size,
                                        .inner = moe.moe_intermediate_size,
                                        .bias = moe.expert_bias}));
  if (moe.shared_intermediate_size == 0) return Status();
  return build_shared(base, store, block);
}

Status Decoder::build_shared(const std::string& base,
                             nn::WeightStore& store,
                             nn::MoeBlock& block) {
  const MoeConfig& moe = config_.moe;
  const uint32_t hidden = config_.hidden_size;
  const uint32_t inner = moe.shared_intermediate_size;
  const std::string path = fmt::format("{}.{}.", base, moe.shared);
  nn::SharedExpert& shared = block.shared.emplace();
  FLASH_ASSIGN_OR_RETURN(
      shared.gate, store.linear(path + "gate_proj", inner, hidden, false));
  FLASH_ASSIGN_OR_RETURN(shared.up,
                         store.linear(path + "up_proj", inner, hidden, false));
  FLASH_ASSIGN_OR_RETURN(
      shared.down, store.linear(path + "down_proj", hidden, inner, false));
  if (moe.shared_gate.empty()) return Status();
  FLASH_ASSIGN_OR_RETURN(
      shared.weight,
      store.linear(
          fmt::format("{}.{}", base, moe.shared_gate), 1, hidden, false));
  return Status();
}

const nn::MoeBlock* Decoder::experts_after(size_t index) const {
  if (index + 1 >= layers_.size()) return nullptr;
  const Layer& next = layers_[index + 1];
  return next.moe ? &*next.moe : nullptr;
}

uint64_t Decoder::expert_bytes_max() const {
  if (!config_.moe.any()) return 0;
  return uint64_t{3} * config_.moe.routing.experts *
         config_.moe.moe_intermediate_size * config_.hidden_size *
         sizeof(float);
}

}  // namespace mlx_flash::models
