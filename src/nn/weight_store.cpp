// SPDX-License-Identifier: MIT
#include "nn/weight_store.h"

#include <fmt/format.h>

#include <cstring>

#include "base/check.h"
#include "kernels/dequantize.h"
#include "nn/array_util.h"

namespace mlx_flash::nn {

WeightStore::WeightStore(const Checkpoint& checkpoint,
                         std::span<const File> files,
                         bool stock)
    : checkpoint_(checkpoint), files_(files), stock_(stock) {}

Result<Linear> WeightStore::declare(const std::string& path,
                                    uint64_t rows,
                                    uint64_t cols,
                                    bool every_pass) {
  FLASH_ASSIGN_OR_RETURN(const Matrix matrix,
                         checkpoint_.matrix(path, rows, cols));
  return add(matrix, 0, rows, every_pass);
}

Linear WeightStore::add(const Matrix& matrix,
                        uint64_t first,
                        uint64_t rows,
                        bool every_pass) {
  const RowBytes row = row_bytes(matrix.format, matrix.cols);
  ScheduledMatrix scheduled;
  scheduled.name = matrix.path;
  scheduled.format = matrix.format;
  scheduled.rows = rows;
  scheduled.cols = matrix.cols;
  scheduled.every_pass = every_pass;
  const auto add_part =
      [&](const FileRange& range, uint64_t bytes, size_t shared_by) {
        MatrixPart& part = scheduled.parts[scheduled.part_count++];
        part = {.file = range.file,
                .offset = range.offset + first / shared_by * bytes,
                .row_bytes = bytes,
                .shared_by = static_cast<uint32_t>(shared_by),
                .rows_above = static_cast<uint32_t>(first % shared_by)};
        weights_bytes_ += part.bytes(0, rows);
      };
  add_part(matrix.weight, row.weight, 1);
  if (row.scales != 0) {
    add_part(matrix.scales, row.scales, matrix.format.scale_rows());
  }
  if (row.biases != 0) add_part(matrix.biases, row.biases, 1);

  Linear linear;
  linear.matrix = static_cast<MatrixId>(matrices_.size());
  linear.rows = static_cast<uint32_t>(rows);
  linear.cols = static_cast<uint32_t>(matrix.cols);
  matrices_.push_back(std::move(scheduled));
  return linear;
}

Result<Linear> WeightStore::stacked(const std::string& path,
                                    uint64_t stack,
                                    uint64_t rows,
                                    uint64_t cols) {
  FLASH_ASSIGN_OR_RETURN(const Matrix matrix,
                         checkpoint_.stacked_matrix(path, stack, rows, cols));
  return add(matrix, 0, stack * rows, true);
}

Result<Linear> WeightStore::rows_of(const std::string& path,
                                    uint64_t all_rows,
                                    uint64_t cols,
                                    uint64_t first,
                                    uint64_t rows) {
  FLASH_ASSIGN_OR_RETURN(const Matrix matrix,
                         checkpoint_.matrix(path, all_rows, cols));
  return add(matrix, first, rows, true);
}

Result<Linear> WeightStore::linear(const std::string& path,
                                   uint64_t rows,
                                   uint64_t cols,
                                   bool bias,
                                   RowOrder row_order,
                                   uint32_t heads) {
  FLASH_ASSIGN_OR_RETURN(Linear linear, declare(path, rows, cols, true));
  linear.row_order = row_order;
  linear.heads = heads;
  if (bias) {
    FLASH_ASSIGN_OR_RETURN(linear.bias,
                           small(path + ".bias", rows, row_order, heads));
  }
  return linear;
}

Result<Linear> WeightStore::row_table(const std::string& path,
                                      uint64_t rows,
                                      uint64_t cols) {
  return declare(path, rows, cols, false);
}

Result<SmallTensor> WeightStore::small(const std::string& name,
                                       uint64_t n,
                                       RowOrder row_order,
                                       uint32_t heads) {
  const Tensor* tensor = checkpoint_.find(name);
  if (tensor == nullptr) {
    return invalid_input(
        fmt::format("{}: the tensor {} is missing", checkpoint_.path(), name));
  }
  uint64_t count = 1;
  for (const uint64_t extent : tensor->shape) count *= extent;
  const bool dense = !tensor->block_format && (tensor->dtype == DType::kF32 ||
                                               tensor->dtype == DType::kF16 ||
                                               tensor->dtype == DType::kBF16);
  if (count != n || !dense) {
    return invalid_input(fmt::format(
        "{}: the tensor {} must be {} floating-point values, it has {} of {}",
        checkpoint_.path(),
        name,
        n,
        count,
        tensor->block_format ? format_name(tensor->format)
                             : std::string(dtype_name(tensor->dtype))));
  }
  std::vector<std::byte> bytes(tensor->range.bytes);
  FLASH_RETURN_IF_ERROR(
      files_[tensor->range.file].read(tensor->range.offset, bytes));
  small_bytes_ += n * 4;
  weights_bytes_ += tensor->range.bytes;

  const size_t item = dtype_bytes(tensor->dtype);
  if (row_order != RowOrder::kPlain) {
    std::vector<std::byte> plain(bytes.size());
    for (uint32_t r = 0; r < n; ++r) {
      std::memcpy(plain.data() +
                      item * published_row(
                                 row_order, heads, static_cast<uint32_t>(n), r),
                  bytes.data() + item * r,
                  item);
    }
    bytes = std::move(plain);
  }
  SmallTensor small;
  if (stock_) {
    small.array = array_from_bytes(
        bytes, {static_cast<int>(n)}, mlx_dtype(tensor->dtype));
  } else {
    small.values.resize(n);
    kernels::dequantize_row({.format = dense_format(tensor->dtype),
                             .rows = 1,
                             .cols = n,
                             .weight = bytes.data()},
                            0,
                            small.values.data());
  }
  return small;
}

uint32_t published_row(RowOrder order,
                       uint32_t heads,
                       uint32_t rows,
                       uint32_t r) {
  if (order == RowOrder::kPlain) return r;
  const uint32_t head_dim = rows / heads;
  const uint32_t in_head = r % head_dim;
  return r - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

}  // namespace mlx_flash::nn
