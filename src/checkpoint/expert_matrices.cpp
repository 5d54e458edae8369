// SPDX-License-Identifier: MIT

// The experts of a projection: slices of one stacked tensor, or tensors of
// their own.

#include <fmt/format.h>

#include "base/quote.h"
#include "checkpoint/checkpoint.h"

namespace mlx_flash {
namespace {

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

FileRange slice(const FileRange& range, uint64_t index, uint64_t count) {
  const uint64_t bytes = range.bytes / count;
  return {range.file, range.offset + index * bytes, bytes};
}

}  // namespace

Result<ExpertMatrices> Checkpoint::experts(const ExpertSource& source) const {
  ExpertMatrices out;
  out.path = source.path;
  out.rows = source.rows;
  out.cols = source.cols;
  out.experts.reserve(source.experts);
  if (source.before.empty()) {
    FLASH_ASSIGN_OR_RETURN(
        const Matrix stack,
        matrix_at(source.path,
                  source.path,
                  {source.experts, source.rows, source.cols}));
    out.format = stack.format;
    for (uint64_t e = 0; e < source.experts; ++e) {
      out.experts.push_back({slice(stack.weight, e, source.experts),
                             slice(stack.scales, e, source.experts),
                             slice(stack.biases, e, source.experts)});
    }
    if (source.bias) {
      FLASH_RETURN_IF_ERROR(add_bias(source, source.path, out));
    }
    return out;
  }
  for (uint64_t e = 0; e < source.experts; ++e) {
    const std::string path =
        fmt::format("{}{}{}", source.before, e, source.after);
    FLASH_RETURN_IF_ERROR(add_expert(source, path, out));
    if (source.bias) FLASH_RETURN_IF_ERROR(add_bias(source, path, out));
  }
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

// The added vectors at `path`: of one expert, or of all if they are stacked.
Status Checkpoint::add_bias(const ExpertSource& source,
                            const std::string& path,
                            ExpertMatrices& out) const {
  const bool stacked = source.before.empty();
  FLASH_ASSIGN_OR_RETURN(const Tensor* bias, tensor(path + ".bias"));
  std::vector<uint64_t> wanted = {source.rows};
  if (stacked) wanted.insert(wanted.begin(), source.experts);
  if (bias->block_format || !is_float(bias->dtype) || bias->shape != wanted ||
      (!out.bias.empty() && bias->dtype != out.bias_dtype)) {
    return invalid_input(
        fmt::format("{}: tensor {} must be {}{} floating-point values, of one "
                    "type for all experts",
                    path_,
                    quote(bias->name),
                    stacked ? fmt::format("{} x ", source.experts) : "",
                    source.rows));
  }
  out.bias_dtype = bias->dtype;
  const uint64_t count = stacked ? source.experts : 1;
  for (uint64_t e = 0; e < count; ++e) {
    out.bias.push_back(slice(bias->range, e, count));
  }
  return Status();
}

}  // namespace mlx_flash
