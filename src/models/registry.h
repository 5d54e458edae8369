// SPDX-License-Identifier: MIT
#pragma once

// Which architectures there are: one row each, by the `model_type` of
// config.json, which for GGUF is general.architecture.

#include <string_view>
#include <vector>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "models/decoder_config.h"

namespace mlx_flash::models {

// The configuration of a checkpoint's model, checked: fails naming the field,
// or the architecture if there is no row for it.
Result<DecoderConfig> read_config(const Checkpoint& checkpoint);

std::vector<std::string_view> supported_model_types();

// One function per architecture, in the file of its name.
Result<DecoderConfig> llama_config(const Json& config);
Result<DecoderConfig> qwen2_config(const Json& config);
Result<DecoderConfig> qwen3_config(const Json& config);

}  // namespace mlx_flash::models
