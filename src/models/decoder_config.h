// SPDX-License-Identifier: MIT
#pragma once

// The shapes and switches of a decoder, as data. An architecture is a
// function from config.json to one of these (llama.cpp, qwen2.cpp, ...);
// nothing below this folder knows its name.

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "models/moe_config.h"
#include "nn/layers.h"
#include "nn/weight_store.h"

namespace mlx_flash::models {

// Latent attention (nn/mla.h); names of config.json.
struct MlaConfig {
  uint32_t kv_lora_rank = 0;  // 0: ordinary attention
  uint32_t q_lora_rank = 0;   // 0: queries are projected directly
  uint32_t qk_nope_head_dim = 0;
  uint32_t qk_rope_head_dim = 0;
  uint32_t v_head_dim = 0;
  bool expanded = false;  // stock: keys and values of all heads in the cache

  bool any() const { return kv_lora_rank != 0; }
};

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
  bool qk_norm = false;          // RMS norm of each head of q and k before rope
  bool qk_norm_whole = false;    // the same over all heads at once
  bool attention_sinks = false;  // a logit of each head that has no value
  double attention_scale = 0;    // of q . k; 0: head_dim ** -0.5
  nn::Activation activation = nn::Activation::kSilu;

  double rope_theta = 10000;
  bool rope_traditional = false;
  Json rope_scaling;       // object or null
  uint32_t rope_dims = 0;  // of a head, that rotate; 0: all

  float embedding_multiplier = 1;
  float residual_multiplier = 1;  // of what is added to the residual stream
  float logits_scaling = 1;       // divides

  // A layer's sliding window in tokens; 0 sees everything. One per layer.
  std::vector<uint32_t> windows;

  MlaConfig mla;  // none: ordinary attention
  MoeConfig moe;  // none: dense

  // Order of the rows of q and k in the file.
  nn::RowOrder qk_row_order = nn::RowOrder::kPlain;
};

}  // namespace mlx_flash::models
