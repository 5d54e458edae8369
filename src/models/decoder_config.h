// SPDX-License-Identifier: MIT
#pragma once

// The shapes and switches of a dense decoder, as data. An architecture is a
// function from config.json to one of these (llama.cpp, qwen2.cpp, ...);
// nothing below this folder knows its name.

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "nn/layers.h"
#include "nn/weight_store.h"

namespace mlx_flash::models {

struct DecoderConfig {
  uint32_t hidden_size = 0;
  uint32_t num_hidden_layers = 0;
  uint32_t intermediate_size = 0;
  uint32_t num_attention_heads = 0;
  uint32_t num_key_value_heads = 0;
  uint32_t head_dim = 0;
  uint32_t vocab_size = 0;
  uint64_t max_position_embeddings = 0;  // 0: not given
  float rms_norm_eps = 1e-5f;
  bool tie_word_embeddings = true;

  bool qkv_bias = false;  // q_proj, k_proj, v_proj
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;  // RMS norm of each head of q and k before rope
  nn::Activation activation = nn::Activation::kSilu;

  double rope_theta = 10000;
  bool rope_traditional = false;
  Json rope_scaling;  // object or null

  // A layer's sliding window in tokens; 0 sees everything. One per layer.
  std::vector<uint32_t> windows;

  // Order of the rows of q and k in the file.
  nn::RowOrder qk_row_order = nn::RowOrder::kPlain;
};

}  // namespace mlx_flash::models
