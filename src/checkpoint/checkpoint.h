// SPDX-License-Identifier: MIT
#pragma once

// What is in the weight files of a model, and where every byte lies.
//
// One view over MLX and Hugging Face folders (config.json, *.safetensors, an
// index or none) and GGUF files: tensors under their Hugging Face names
// ("model.layers.0.self_attn.q_proj"), hyper-parameters under the names of
// config.json. Only headers are read; weights are read by residency/.
// Everything here comes from outside: any malformed input is a Status that
// names file and field or offset, never a check, and costs memory in
// proportion to the header's real size (a header that claims more bytes than
// its file has is refused before anything is allocated).
//
// Immutable after open; safe to read from any thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "base/weight_format.h"

namespace mlx_flash {

// Some bytes of one of Checkpoint::files().
struct FileRange {
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// A tensor as the file has it. For GGUF block types `format` is the block
// format and `shape` counts values.
struct Tensor {
  std::string name;             // Hugging Face name, with ".weight"
  std::vector<uint64_t> shape;  // outermost first
  bool block_format = false;    // a GGUF block type: `format` says which
  DType dtype = DType::kF32;    // if not block_format
  WeightFormat format;          // of block types, and of f32, f16, bf16
  FileRange range;
};

// A matrix [rows, cols] that a Linear or Embedding multiplies by, its parts
// resolved: format, and where weights, scales and biases lie.
struct Matrix {
  std::string path;  // "model.layers.0.mlp.up_proj"
  WeightFormat format;
  uint64_t rows = 0;
  uint64_t cols = 0;
  FileRange weight;
  FileRange scales;  // bytes == 0 where the format has none
  FileRange biases;
  uint64_t bytes() const { return weight.bytes + scales.bytes + biases.bytes; }
};

// One projection of all experts of a layer: a matrix [rows, cols] each, all in
// one format, wherever they lie.
struct ExpertMatrices {
  std::string path;  // of the stack: "model.layers.3.mlp.switch_mlp.up_proj"
  WeightFormat format;
  uint64_t rows = 0;
  uint64_t cols = 0;
  struct Parts {
    FileRange weight;
    FileRange scales;  // bytes == 0 where the format has none
    FileRange biases;
  };
  std::vector<Parts> experts;
  std::vector<FileRange> bias;  // vectors of `rows` values; empty: none
  DType bias_dtype = DType::kF32;
};

// Where the experts of a projection lie and how large they are. One of:
//  - one tensor [experts, rows, cols] at `path`;
//  - tensors of each expert by itself, if `before` is not empty;
//  - rows [first_row, first_row + rows) of each expert in a tensor [experts,
//    fused_rows, cols], if `fused` is not empty.
struct ExpertSource {
  // As mlx-lm names the stack, and config.json its quantisation.
  std::string path;
  // The tensors' names without ".weight": `before` + number + `after`.
  std::string before;
  std::string after;
  std::string fused;
  uint64_t fused_rows = 0;
  uint64_t first_row = 0;
  // gpt_oss as published: `fused` is mxfp4 in "<fused>_blocks" [experts,
  // fused_rows, cols / 32, 16] and "<fused>_scales" [experts, fused_rows,
  // cols / 32], its vectors are "<fused>_bias".
  bool mxfp4_blocks = false;
  uint64_t experts = 0;
  uint64_t rows = 0;
  uint64_t cols = 0;
  bool bias = false;  // a vector "<path>.bias" for each expert, stacked alike
};

struct QuantizationSetting;  // checkpoint/quantization.h

class Checkpoint {
 public:
  // `path`: a folder in Hugging Face or MLX layout, or a .gguf file (of a
  // split file "-00001-of-000NN.gguf", the first).
  static Result<Checkpoint> open(const std::string& path);
  Checkpoint(Checkpoint&&) noexcept = default;
  Checkpoint& operator=(Checkpoint&&) noexcept = default;

  const std::string& path() const { return path_; }
  const std::vector<std::string>& files() const { return files_; }
  bool is_gguf() const { return is_gguf_; }

  // config.json; for GGUF the same keys made from its metadata (model_type =
  // general.architecture). Always an object.
  const Json& config() const { return config_; }

  // All tensors of types we know, in file order.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  uint64_t weights_bytes() const;  // sum over tensors

  // Null if there is none, or only one of a type that nothing here can use.
  const Tensor* find(std::string_view name) const;

  // The same for a tensor that must be there: the error names the tensor and,
  // if that is why, its type.
  Result<const Tensor*> tensor(std::string_view name) const;

  // The matrix at `path` with its quantisation worked out as mlx-lm does it
  // (per-path entries, else inferred from shapes and the dtype of `scales`).
  // Fails if a part is missing or does not have the shape [rows, cols] says.
  Result<Matrix> matrix(const std::string& path,
                        uint64_t rows,
                        uint64_t cols) const;

  // The same of a tensor [stack, rows, cols], with all its rows.
  Result<Matrix> stacked_matrix(const std::string& path,
                                uint64_t stack,
                                uint64_t rows,
                                uint64_t cols) const;

  // The same for all experts of a projection, quantised as the stack is.
  Result<ExpertMatrices> experts(const ExpertSource& source) const;

 private:
  friend class CheckpointBuilder;
  Checkpoint() = default;

  // A tensor [stack, rows, cols], or [rows, cols] if stack is 0. The matrix
  // that is returned has all rows of the stack.
  struct Extent {
    uint64_t stack = 0;
    uint64_t rows = 0;
    uint64_t cols = 0;
    std::vector<uint64_t> shape(uint64_t columns) const;
    uint64_t all_rows() const { return rows * (stack == 0 ? 1 : stack); }
  };

  // `listed_path`: where config.json says how it is quantised.
  Result<Matrix> matrix_at(const std::string& path,
                           const std::string& listed_path,
                           const Extent& extent) const;
  Result<Matrix> plain_matrix(const std::string& path,
                              const Extent& extent,
                              const Tensor& weight) const;
  // `listed`: what config.json says of the path; none: nothing.
  Result<Matrix> quantized_matrix(
      const std::string& path,
      const Extent& extent,
      const Tensor& weight,
      const std::optional<QuantizationSetting>& listed) const;
  // Of a weight that is e4m3.
  Result<Matrix> fp8_matrix(const std::string& path,
                            const Extent& extent,
                            const Tensor& weight) const;
  Result<Matrix> stack_of(const ExpertSource& source) const;
  Result<Matrix> mxfp4_blocks(const ExpertSource& source) const;
  Result<ExpertMatrices> stacked_experts(const ExpertSource& source) const;
  Status add_expert(const ExpertSource& source,
                    const std::string& path,
                    ExpertMatrices& out) const;
  Status add_bias(const ExpertSource& source,
                  const std::string& name,
                  ExpertMatrices& out) const;

  std::string path_;
  std::vector<std::string> files_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;  // into tensors_
  // Types of the tensors left out of tensors_ ("F64", "IQ4_NL"), by name.
  std::unordered_map<std::string, std::string> unusable_;
  Json config_;
  bool is_gguf_ = false;
};

}  // namespace mlx_flash
