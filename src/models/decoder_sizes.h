// SPDX-License-Identifier: MIT
#pragma once

// The sizes that every decoder has, read the way its architecture's file in
// mlx-lm does: which must be given, and what the others are without.

#include <cstdint>

#include "models/config_reader.h"
#include "models/decoder_config.h"

namespace mlx_flash::models {

// Must be in config.json.
inline constexpr uint32_t kGiven = UINT32_MAX;
// num_key_value_heads: as many as heads. head_dim: what the heads share.
inline constexpr uint32_t kFromHeads = UINT32_MAX - 1;

// What a size is that config.json does not have.
struct SizeDefaults {
  uint32_t hidden_size = kGiven;
  uint32_t num_hidden_layers = kGiven;
  uint32_t num_attention_heads = kGiven;
  uint32_t num_key_value_heads = kGiven;
  uint32_t head_dim = kFromHeads;
  uint32_t vocab_size = kGiven;
  uint32_t max_position_embeddings = 0;
  double rms_norm_eps = -1;  // -1: must be given
  // head_dim of config.json does not count.
  bool head_dim_ignored = false;
};

// The deepseeks' own (mlx_lm/models/deepseek*.py).
inline constexpr SizeDefaults kDeepseekSizes = {.hidden_size = 4096,
                                                .num_hidden_layers = 30,
                                                .num_attention_heads = 32,
                                                .num_key_value_heads = 32,
                                                .head_dim = kFromHeads,
                                                .vocab_size = 102400,
                                                .max_position_embeddings = 2048,
                                                .rms_norm_eps = 1e-6,
                                                .head_dim_ignored = true};

// A configuration with these sizes, no windows, and otherwise as made. What is
// wrong, more layers than any model has included, is in in.status(): with it
// the numbers mean nothing, but are safe to go on with.
DecoderConfig read_sizes(ConfigReader& in, const SizeDefaults& defaults = {});

// Whether each of `layers` layers has experts in the deepseeks: every
// `step`-th, but for the first_k_dense_replace.
std::vector<bool> layers_after_dense(ConfigReader& in,
                                     uint32_t layers,
                                     uint32_t step);

// The width of n_shared_experts beside the experts of `moe`; 0: none.
uint32_t shared_width(ConfigReader& in, const MoeConfig& moe);

}  // namespace mlx_flash::models
