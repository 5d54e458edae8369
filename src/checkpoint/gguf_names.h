// SPDX-License-Identifier: MIT
#pragma once

// GGUF in Hugging Face's words: names of tensors, keys of config.json.

#include <span>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"
#include "checkpoint/gguf.h"

namespace mlx_flash {

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight". Names
// outside the table stay as they are.
std::string hugging_face_name(std::string_view gguf_name);

// config.json made from the metadata of the first of a model's files, and from
// which tensors there are in all of them. Beside the keys of Hugging Face:
//  - rope_traditional: true where the architecture's q and k rows are stored
//    for interleaved rope (mlx-lm's llama has the same key);
//  - rope_scaling {rope_type: "freq_factors", freq_factors: [...]}: a
//    rope_freqs tensor that no llama3 parameters explain. Its elements divide
//    the rotation speeds, one for each pair.
// Always an object with model_type. REQUIRES: files is not empty.
Result<Json> gguf_config(std::span<const GgufFile> files);

// The part of it that experts and latent attention need, over what the
// metadata gave `config` by name (gguf_experts.cpp): what llama.cpp knows by
// the architecture, and what it counts or splits otherwise.
Status set_gguf_experts(std::span<const GgufFile> files,
                        const std::string& architecture,
                        Json& config);

}  // namespace mlx_flash
