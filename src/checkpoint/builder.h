// SPDX-License-Identifier: MIT
#pragma once

// Puts a Checkpoint together from the headers of its files.

#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"

namespace mlx_flash {

class CheckpointBuilder {
 public:
  explicit CheckpointBuilder(const std::string& path) {
    checkpoint_.path_ = path;
  }

  // Each is called once for a file; tensors keep their order.
  void add(const std::string& file, std::vector<SafetensorsEntry> entries);
  void add(const GgufFile& file, const std::string& path);

  // Fails if two tensors have the same name.
  Result<Checkpoint> finish(Json config, bool is_gguf);

 private:
  uint32_t add_file(const std::string& file);
  void add_unusable(std::string name, std::string_view type);

  Checkpoint checkpoint_;
};

// The files of a folder in Hugging Face or MLX layout, in the order of their
// names: those of model.safetensors.index.json, else all model*.safetensors.
Result<std::vector<std::string>> weight_files(const std::string& folder);

// config.json as mlx-lm reads it: generation_config.json's eos_token_id wins,
// {"__float__": "Infinity"} is infinity, older quantisation keys are turned
// into `quantization`.
Result<Json> read_config(const std::string& folder);

// All parts of a split model, from its first ("-00001-of-000NN.gguf"); the
// path itself if it is not split.
Result<std::vector<std::string>> gguf_parts(const std::string& path,
                                            const GgufFile& first);

}  // namespace mlx_flash
