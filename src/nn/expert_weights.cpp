// SPDX-License-Identifier: MIT

// Declares the experts of a layer, wherever a checkpoint keeps them.

#include <fmt/format.h>

#include "nn/weight_store.h"

namespace mlx_flash::nn {
namespace {

// How a projection is named and lies, behind the block's path.
struct Projection {
  const char* name;    // the tensor's, behind Layout::before or Layout::stack
  uint32_t of = 1;     // projections of the same rows that share the tensor
  uint32_t place = 0;  // which of them this is, one after another
};

struct Layout {
  const char* stack;  // all experts' tensors; of mlx-lm, whatever lies in files
  const char* before = nullptr;  // of one expert's tensors: "<before><number>."
  const char* fused = nullptr;   // of tensors that hold several projections
  // Behind a tensor's name: a tensor that there must be.
  const char* probe = ".weight";
  bool alternating = false;   // one tensor has gate and up, row by row in turns
  bool mxfp4_blocks = false;  // ExpertSource::mxfp4_blocks
  Projection gate = {"gate_proj"};
  Projection up = {"up_proj"};
  Projection down = {"down_proj"};
};

constexpr Layout kLayouts[] = {
    // mlx-lm's SwitchGLU, and what GGUF's names become.
    {.stack = ".switch_mlp."},
    {.stack = ".experts."},
    // Hugging Face: a tensor for each expert; mixtral has names of its own.
    {.stack = ".switch_mlp.", .before = ".experts."},
    {.stack = ".switch_mlp.",
     .before = ".experts.",
     .gate = {"w1"},
     .up = {"w3"},
     .down = {"w2"}},
    // Hugging Face: granitemoe's gate above its up, gpt_oss' in turns.
    {.stack = ".switch_mlp.",
     .fused = ".",
     .gate = {"input_linear", 2, 0},
     .up = {"input_linear", 2, 1},
     .down = {"output_linear"}},
    {.stack = ".experts.",
     .fused = ".experts.",
     .probe = "_blocks",
     .alternating = true,
     .mxfp4_blocks = true,
     .gate = {"gate_up_proj"},
     .up = {}},
};

// Of the stack, whatever an expert's own is called.
constexpr const char* kStackNames[] = {"gate_proj", "up_proj", "down_proj"};

std::string probe(const std::string& path, const Layout& layout) {
  if (layout.before != nullptr) {
    return fmt::format(
        "{}{}0.{}{}", path, layout.before, layout.gate.name, layout.probe);
  }
  return fmt::format("{}{}{}{}",
                     path,
                     layout.fused != nullptr ? layout.fused : layout.stack,
                     layout.gate.name,
                     layout.probe);
}

// Projection `index` of kStackNames; with `alternating`, 0 is gate and up.
ExpertSource source_of(const std::string& path,
                       const ExpertsShape& shape,
                       const Layout& layout,
                       size_t index) {
  const Projection projections[] = {layout.gate, layout.up, layout.down};
  const Projection& projection = projections[index];
  const bool down = index == 2;
  ExpertSource source;
  source.path = path + layout.stack + kStackNames[index];
  source.experts = shape.count;
  source.rows = down ? shape.hidden : shape.inner;
  if (!down && layout.alternating) source.rows *= 2;
  source.cols = down ? shape.inner : shape.hidden;
  source.bias = shape.bias;
  source.mxfp4_blocks = layout.mxfp4_blocks;
  if (layout.before != nullptr) {
    source.before = path + layout.before;
    source.after = fmt::format(".{}", projection.name);
  }
  if (layout.fused != nullptr) {
    source.fused = path + layout.fused + projection.name;
    source.fused_rows = projection.of * source.rows;
    source.first_row = projection.place * source.rows;
  }
  return source;
}

}  // namespace

Status WeightStore::add_projection(const ExpertSource& source,
                                   ExpertLayer& layer) {
  FLASH_ASSIGN_OR_RETURN(const ExpertMatrices from,
                         checkpoint_.experts(source));
  const RowBytes row = row_bytes(from.format, from.cols);
  const auto shared_by = static_cast<uint32_t>(from.format.scale_rows());
  ExpertMatrix matrix;
  matrix.format = from.format;
  matrix.rows = from.rows;
  matrix.cols = from.cols;
  matrix.part_count = 1u + (row.scales != 0) + (row.biases != 0);
  matrix.parts.reserve(from.experts.size());
  for (const ExpertMatrices::Parts& parts : from.experts) {
    matrix.parts.push_back(
        {MatrixPart{parts.weight.file, parts.weight.offset, row.weight},
         MatrixPart{.file = parts.scales.file,
                    .offset = parts.scales.offset,
                    .row_bytes = row.scales,
                    .shared_by = shared_by},
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
    if (checkpoint_.find(probe(path, candidate)) != nullptr) {
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
  for (size_t i = 0; i < kExpertMatricesMax; ++i) {
    if (layout->alternating && i == 1) continue;  // 0 has both
    FLASH_RETURN_IF_ERROR(
        add_projection(source_of(path, shape, *layout, i), layer));
  }
  Experts experts{.layer = static_cast<uint32_t>(expert_layers_.size()),
                  .count = shape.count,
                  .active = shape.active,
                  .hidden = shape.hidden,
                  .inner = shape.inner,
                  .alternating = layout->alternating};
  expert_layers_.push_back(std::move(layer));
  return experts;
}

}  // namespace mlx_flash::nn
