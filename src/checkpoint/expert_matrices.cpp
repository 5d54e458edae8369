// SPDX-License-Identifier: MIT

// The experts of a projection: slices of one stacked tensor, or tensors of
// their own.

#include <fmt/format.h>

#include "base/quote.h"
#include "checkpoint/checkpoint.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kMxfp4Group = 32;

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

FileRange slice(const FileRange& range, uint64_t index, uint64_t count) {
  const uint64_t bytes = range.bytes / count;
  return {range.file, range.offset + index * bytes, bytes};
}

uint64_t stack_rows(const ExpertSource& source) {
  return source.fused.empty() ? source.rows : source.fused_rows;
}

// Expert `e`'s rows of a part of the stack, or its bytes of all of it.
FileRange rows_of(const FileRange& range,
                  const ExpertSource& source,
                  uint64_t e) {
  const FileRange all = slice(range, e, source.experts);
  const uint64_t row_bytes = all.bytes / stack_rows(source);
  return {all.file,
          all.offset + source.first_row * row_bytes,
          source.rows * row_bytes};
}

}  // namespace

Result<ExpertMatrices> Checkpoint::experts(const ExpertSource& source) const {
  if (source.before.empty()) return stacked_experts(source);
  ExpertMatrices out;
  out.path = source.path;
  out.rows = source.rows;
  out.cols = source.cols;
  out.experts.reserve(source.experts);
  for (uint64_t e = 0; e < source.experts; ++e) {
    const std::string path =
        fmt::format("{}{}{}", source.before, e, source.after);
    FLASH_RETURN_IF_ERROR(add_expert(source, path, out));
    if (!source.bias) continue;
    FLASH_RETURN_IF_ERROR(add_bias(source, path + ".bias", out));
  }
  return out;
}

Result<ExpertMatrices> Checkpoint::stacked_experts(
    const ExpertSource& source) const {
  FLASH_ASSIGN_OR_RETURN(const Matrix stack, stack_of(source));
  ExpertMatrices out;
  out.path = source.path;
  out.format = stack.format;
  out.rows = source.rows;
  out.cols = source.cols;
  out.experts.reserve(source.experts);
  for (uint64_t e = 0; e < source.experts; ++e) {
    out.experts.push_back({rows_of(stack.weight, source, e),
                           rows_of(stack.scales, source, e),
                           rows_of(stack.biases, source, e)});
  }
  if (!source.bias) return out;
  const std::string& path = source.fused.empty() ? source.path : source.fused;
  FLASH_RETURN_IF_ERROR(
      add_bias(source, path + (source.mxfp4_blocks ? "_bias" : ".bias"), out));
  return out;
}

// With all rows of all experts.
Result<Matrix> Checkpoint::stack_of(const ExpertSource& source) const {
  if (source.mxfp4_blocks) return mxfp4_blocks(source);
  return matrix_at(source.fused.empty() ? source.path : source.fused,
                   source.path,
                   {source.experts, stack_rows(source), source.cols});
}

Result<Matrix> Checkpoint::mxfp4_blocks(const ExpertSource& source) const {
  const WeightFormat format = block_format(WeightKind::kMxfp4);
  if (!format_accepts(format, source.cols)) {
    return invalid_input(fmt::format("{}: {}: {} columns cannot be {}",
                                     path_,
                                     source.fused,
                                     source.cols,
                                     format_name(format)));
  }
  const uint64_t groups = source.cols / kMxfp4Group;
  const auto part = [&](const char* name,
                        std::vector<uint64_t> shape) -> Result<FileRange> {
    FLASH_ASSIGN_OR_RETURN(const Tensor* found, tensor(source.fused + name));
    if (found->block_format || found->dtype != DType::kU8 ||
        found->shape != shape) {
      return invalid_input(
          fmt::format("{}: tensor {} must be uint8 [{}], it is {} [{}]",
                      path_,
                      quote(found->name),
                      fmt::join(shape, ", "),
                      dtype_name(found->dtype),
                      fmt::join(found->shape, ", ")));
    }
    return found->range;
  };
  Matrix out{source.fused,
             format,
             source.experts * source.fused_rows,
             source.cols,
             {},
             {},
             {}};
  FLASH_ASSIGN_OR_RETURN(
      out.weight,
      part("_blocks",
           {source.experts, source.fused_rows, groups, kMxfp4Group / 2}));
  FLASH_ASSIGN_OR_RETURN(
      out.scales, part("_scales", {source.experts, source.fused_rows, groups}));
  return out;
}

Status Checkpoint::add_expert(const ExpertSource& source,
                              const std::string& path,
                              ExpertMatrices& out) const {
  FLASH_ASSIGN_OR_RETURN(
      const Matrix matrix,
      matrix_at(path, source.path, {.rows = source.rows, .cols = source.cols}));
  if (out.experts.empty()) {
    out.format = matrix.format;
  } else if (matrix.format != out.format) {
    return unsupported(fmt::format("{}: {} is {}, the experts before it are {}",
                                   path_,
                                   path,
                                   format_name(matrix.format),
                                   format_name(out.format)));
  }
  out.experts.push_back({matrix.weight, matrix.scales, matrix.biases});
  return Status();
}

// The added vectors `name`: of one expert, or of all if they are stacked.
Status Checkpoint::add_bias(const ExpertSource& source,
                            const std::string& name,
                            ExpertMatrices& out) const {
  const bool stacked = source.before.empty();
  FLASH_ASSIGN_OR_RETURN(const Tensor* bias, tensor(name));
  std::vector<uint64_t> wanted = {stacked ? stack_rows(source) : source.rows};
  if (stacked) wanted.insert(wanted.begin(), source.experts);
  if (bias->block_format || !is_float(bias->dtype) || bias->shape != wanted ||
      (!out.bias.empty() && bias->dtype != out.bias_dtype)) {
    return invalid_input(
        fmt::format("{}: tensor {} must be {}{} floating-point values, of one "
                    "type for all experts",
                    path_,
                    quote(bias->name),
                    stacked ? fmt::format("{} x ", source.experts) : "",
                    wanted.back()));
  }
  out.bias_dtype = bias->dtype;
  if (!stacked) {
    out.bias.push_back(bias->range);
    return Status();
  }
  for (uint64_t e = 0; e < source.experts; ++e) {
    out.bias.push_back(rows_of(bias->range, source, e));
  }
  return Status();
}

}  // namespace mlx_flash
