// SPDX-License-Identifier: MIT
#pragma once

// Where --model leads, and where this program keeps its own files.

#include <string>

#include "mlx_flash/status.h"

namespace mlx_flash {

// MLX_FLASH_CACHE, else "mlx-flash" in the user's cache folder. May not exist.
std::string cache_folder();

// A folder or file as given; else, for "org/name", the snapshot of that
// repository in the Hugging Face cache (HF_HUB_CACHE, HF_HOME); empty: the
// default model, if it was fetched. Fails with what to do.
Result<std::string> resolve_model(const std::string& model);

// The last part of a path without ".gguf": what reports call a model.
std::string model_name_of(const std::string& path);

}  // namespace mlx_flash
