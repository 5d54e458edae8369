// SPDX-License-Identifier: MIT
#pragma once

// Which architectures there are: one row each, by the `model_type` of
// config.json or by GGUF's general.architecture.

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "models/decoder_config.h"

namespace mlx_flash::models {

// The configuration of a checkpoint's model, checked: fails naming the field,
// or the architecture if there is no row for it.
Result<DecoderConfig> read_config(const Checkpoint& checkpoint);

// Lets a token use `top_k` experts. Fails if there are none or not so many.
Status set_top_k(DecoderConfig& config, uint32_t top_k);

class ConfigReader;

// The experts of `noaux_tc` (noaux_experts.cpp); every layer_freq-th layer has
// them.
Result<DecoderConfig> noaux_experts(ConfigReader& in,
                                    DecoderConfig out,
                                    uint32_t layer_freq);

// Sizes and latent attention of DeepSeek V2 and V3 (deepseek_v2.cpp).
DecoderConfig latent_decoder(ConfigReader& in);

// One function per architecture, in the file of its name.
Result<DecoderConfig> deepseek_config(const Json& config);
// GGUF's name for V2 and V3.
Result<DecoderConfig> deepseek2_config(const Json& config);
Result<DecoderConfig> deepseek_v2_config(const Json& config);
Result<DecoderConfig> deepseek_v3_config(const Json& config);
Result<DecoderConfig> glm4_moe_config(const Json& config);
Result<DecoderConfig> gpt_oss_config(const Json& config);
Result<DecoderConfig> granitemoe_config(const Json& config);
Result<DecoderConfig> llama_config(const Json& config);
Result<DecoderConfig> mixtral_config(const Json& config);
Result<DecoderConfig> olmoe_config(const Json& config);
Result<DecoderConfig> qwen2_config(const Json& config);
Result<DecoderConfig> qwen2_moe_config(const Json& config);
Result<DecoderConfig> qwen3_config(const Json& config);
Result<DecoderConfig> qwen3_moe_config(const Json& config);

}  // namespace mlx_flash::models
