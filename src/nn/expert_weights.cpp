// SPDX-License-Identifier: MIT

// Declares the experts of a layer, wherever a checkpoint keeps them.

#include <fmt/format.h>

#include "nn/weight_store.h"

namespace mlx_flash::nn {
namespace {

// Names of a projection behind the block's path: of the stack, and of one
// expert around its number.
struct Layout {
  const char* stack;
  const char* before;  // null: one tensor for all experts
  const char* gate;
  const char* up;
  const char* down;
};

constexpr Layout kLayouts[] = {
    // mlx-lm's SwitchGLU, and what GGUF's names become.
    {".switch_mlp.", nullptr, "gate_proj", "up_proj", "down_proj"},
    {".experts.", nullptr, "gate_proj", "up_proj", "down_proj"},
    // Hugging Face: a tensor for each expert; mixtral has names of its own.
    {".switch_mlp.", ".experts.", "gate_proj", "up_proj", "down_proj"},
    {".switch_mlp.", ".experts.", "w1", "w3", "w2"},
};

// Of the stack, whatever an expert's own is called.
constexpr const char* kStackNames[] = {"gate_proj", "up_proj", "down_proj"};

std::string first_tensor(const std::string& path, const Layout& layout) {
  const bool single = layout.before != nullptr;
  return fmt::format("{}{}{}{}.weight",
                     path,
                     single ? layout.before : layout.stack,
                     single ? "0." : "",
                     layout.gate);
}

}  // namespace

Status WeightStore::add_projection(const ExpertSource& source,
                                   ExpertLayer& layer) {
  FLASH_ASSIGN_OR_RETURN(const ExpertMatrices from,
                         checkpoint_.experts(source));
  const RowBytes row = row_bytes(from.format, from.cols);
  ExpertMatrix matrix;
  matrix.format = from.format;
  matrix.rows = from.rows;
  matrix.cols = from.cols;
  matrix.part_count = 1u + (row.scales != 0) + (row.biases != 0);
  matrix.parts.reserve(from.experts.size());
  for (const ExpertMatrices::Parts& parts : from.experts) {
    matrix.parts.push_back(
        {MatrixPart{parts.weight.file, parts.weight.offset, row.weight},
         MatrixPart{parts.scales.file, parts.scales.offset, row.scales},
         MatrixPart{parts.biases.file, parts.biases.offset, row.biases}});
    weights_bytes_ +=
        parts.weight.bytes + parts.scales.bytes + parts.biases.bytes;
  }
  matrix.bias_dtype = from.bias_dtype;
  matrix.bias.reserve(from.bias.size());
  for (const FileRange& bias : from.bias) {
    matrix.bias.push_back(
        {bias.file, bias.offset, dtype_bytes(from.bias_dtype)});
    weights_bytes_ += bias.bytes;
  }
  layer.matrices.push_back(std::move(matrix));
  return Status();
}

Result<Experts> WeightStore::experts(const std::string& path,
                                     const ExpertsShape& shape) {
  const Layout* layout = &kLayouts[0];  // also names what is missing
  for (const Layout& candidate : kLayouts) {
    if (checkpoint_.find(first_tensor(path, candidate)) != nullptr) {
      layout = &candidate;
      break;
    }
  }
  ExpertLayer layer;
  layer.name = path;
  layer.experts = shape.count;
  layer.active = shape.active;
  layer.after =
      matrices_.empty() ? 0 : static_cast<uint32_t>(matrices_.size() - 1);
  const char* names[] = {layout->gate, layout->up, layout->down};
  for (size_t i = 0; i < kExpertMatricesMax; ++i) {
    const bool down = i == 2;
    ExpertSource source;
    source.path = path + layout->stack + kStackNames[i];
    if (layout->before != nullptr) {
      source.before = path + layout->before;
      source.after = fmt::format(".{}", names[i]);
    }
    source.experts = shape.count;
    source.rows = down ? shape.hidden : shape.inner;
    source.cols = down ? shape.inner : shape.hidden;
    source.bias = shape.bias;
    FLASH_RETURN_IF_ERROR(add_projection(source, layer));
  }
  Experts experts{.layer = static_cast<uint32_t>(expert_layers_.size()),
                  .count = shape.count,
                  .active = shape.active,
                  .hidden = shape.hidden,
                  .inner = shape.inner};
  expert_layers_.push_back(std::move(layer));
  return experts;
}

}  // namespace mlx_flash::nn
