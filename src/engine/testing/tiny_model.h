// SPDX-License-Identifier: MIT
#pragma once

// Writes a small llama model of random weights (fixed seed) in Hugging Face
// layout, or a qwen3_moe in MLX's, or a dense deepseek_v2 or a deepseek_v3,
// dense or with experts, as published, for tests of the engine. No tokenizer:
// tests use ids.

#include <cstdint>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "base/weight_format.h"

namespace mlx_flash::testing {

struct TinyModel {
  uint32_t hidden_size = 192;
  uint32_t num_hidden_layers = 3;
  uint32_t intermediate_size = 448;
  uint32_t num_attention_heads = 6;
  uint32_t num_key_value_heads = 2;
  uint32_t head_dim = 40;
  uint32_t vocab_size = 307;
  uint32_t max_position_embeddings = 1024;
  uint32_t sliding_window = 0;  // of every second layer; 0: none
  bool tie_word_embeddings = false;
  uint32_t num_experts = 0;  // of each layer; 0: a llama
  uint32_t num_experts_per_tok = 3;
  uint32_t moe_intermediate_size = 64;
  // Experts as gpt_oss is published: mxfp4, gate and up row by row in turns.
  bool experts_in_turns = false;
  // Latent attention: deepseek_v3, or with `latent_v2` deepseek_v2. Then
  // head_dim is the width of values and of what is not rotated of keys.
  uint32_t kv_lora_rank = 0;  // 0: none
  uint32_t q_lora_rank = 0;   // 0: none
  uint32_t qk_rope_head_dim = 16;
  bool latent_v2 = false;
  // Of all matrices: f32, bf16, f16, or affine 4-bit groups of 64. fp8, of a
  // deepseek_v3: of what is fp8 as published, the rest being bf16.
  WeightFormat format = dense_format(DType::kF32);
  uint64_t seed = 1;
};

// Its config.json.
Json tiny_config(const TinyModel& model);

// Writes config.json and model.safetensors into `folder`, which it makes.
// REQUIRES: format accepts all widths of the model.
Status write_tiny_model(const TinyModel& model, const std::string& folder);

// A folder of its own under the system's temporary one, removed with what is
// in it when the object dies.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace mlx_flash::testing
