// SPDX-License-Identifier: MIT
#pragma once

// Writes a small qwen3moe GGUF of random weights (fixed seed), and a folder
// with the same values in float32, for tests of the engine. No tokenizer.

#include <string>

#include "base/status.h"
#include "engine/testing/tiny_model.h"

namespace mlx_flash::testing {

// Sizes that blocks of 256 and of 32 values fit, with so many experts.
TinyModel tiny_gguf_model(uint32_t experts);

// Writes "<folder>/model.gguf", whose experts are stacked: gate Q4_K, up Q6_K,
// down and all else Q8_0; and "<folder>/twin", a folder in Hugging Face's
// layout with the dequantised values, each expert a tensor of its own, whose
// logits differ by what fixed point rounds. REQUIRES: `model` is
// tiny_gguf_model()'s but for the seed.
Status write_tiny_gguf(const TinyModel& model, const std::string& folder);

}  // namespace mlx_flash::testing
