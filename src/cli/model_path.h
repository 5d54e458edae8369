// SPDX-License-Identifier: MIT
#pragma once

// Where --model leads, and where this program keeps its own files.

#include <cstdint>
#include <string>

#include "mlx_flash/status.h"

namespace mlx_flash {

// MLX_FLASH_CACHE, else "mlx-flash" in the user's cache folder. May not exist.
std::string cache_folder();

// What --model and the options beside it say.
struct ModelRequest {
  std::string model;       // as given; empty: the default model
  std::string file;        // --file: a GGUF file or quantisation; may be empty
  std::string revision;    // --revision; may be empty
  bool text_only = false;  // tokenizer files are enough
  bool quiet = false;
  bool debug = false;
  uint64_t ram_bytes = 0;  // what a download is planned for; 0: auto
  uint64_t context = 0;
  int kv_quant = 0;
};

// A folder or file as given; else, for "org/name", that repository of the hub
// (hub_model.h), downloaded if it has to be; empty: the default model, if it
// was fetched. Fails with what to do.
Result<std::string> resolve_model(const ModelRequest& request);

// True for the id of a repository that is no path here.
bool is_hub_id(const std::string& model);

// The last part of a path without ".gguf": what reports call a model.
std::string model_name_of(const std::string& path);

}  // namespace mlx_flash
