// SPDX-License-Identifier: MIT
#include "base/weight_format.h"

#include <fmt/format.h>

#include "base/check.h"

namespace mlx_flash {
namespace {

// One row of the block formats: values in a block, bytes of a block (split
// formats: bytes of the packed weights of a group), nominal bits, name.
struct Block {
  WeightKind kind;
  uint16_t values;
  uint16_t bytes;
  uint8_t bits;
  const char* name;
};

constexpr Block kBlocks[] = {
    {WeightKind::kMxfp4, 32, 16, 4, "mxfp4"},
    {WeightKind::kMxfp8, 32, 32, 8, "mxfp8"},
    {WeightKind::kNvfp4, 16, 8, 4, "nvfp4"},
    {WeightKind::kFp8, 1, 1, 8, "fp8"},  // any number of columns
    {WeightKind::kQ4_0, 32, 18, 4, "Q4_0"},
    {WeightKind::kQ4_1, 32, 20, 4, "Q4_1"},
    {WeightKind::kQ5_0, 32, 22, 5, "Q5_0"},
    {WeightKind::kQ5_1, 32, 24, 5, "Q5_1"},
    {WeightKind::kQ8_0, 32, 34, 8, "Q8_0"},
    {WeightKind::kQ2_K, 256, 84, 2, "Q2_K"},
    {WeightKind::kQ3_K, 256, 110, 3, "Q3_K"},
    {WeightKind::kQ4_K, 256, 144, 4, "Q4_K"},
    {WeightKind::kQ5_K, 256, 176, 5, "Q5_K"},
    {WeightKind::kQ6_K, 256, 210, 6, "Q6_K"},
    {WeightKind::kGgufMxfp4, 32, 17, 4, "MXFP4"},
};

const Block& block_of(WeightKind kind) {
  for (const Block& block : kBlocks) {
    if (block.kind == kind) return block;
  }
  FLASH_CHECK(!"a block format");
  return kBlocks[0];
}

}  // namespace

size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kU32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kU8:
    case DType::kI8:
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    case DType::kU32:
      return "uint32";
    case DType::kU8:
      return "uint8";
    case DType::kI8:
      return "int8";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kF8E4M3:
      return "float8_e4m3";
  }
  return "unknown";
}

RowBytes row_bytes(const WeightFormat& format, size_t cols) {
  FLASH_CHECK(format_accepts(format, cols));
  const size_t groups = cols / format.group_size;
  switch (format.kind) {
    case WeightKind::kF32:
      return {.weight = cols * 4};
    case WeightKind::kF16:
    case WeightKind::kBF16:
      return {.weight = cols * 2};
    case WeightKind::kAffine: {
      const size_t scales = groups * dtype_bytes(format.scale_dtype);
      return {
          .weight = cols * format.bits / 8, .scales = scales, .biases = scales};
    }
    case WeightKind::kMxfp4:
    case WeightKind::kMxfp8:
    case WeightKind::kNvfp4:
      return {.weight = groups * block_of(format.kind).bytes, .scales = groups};
    case WeightKind::kFp8:
      return {.weight = cols,
              .scales = (cols + kFp8Block - 1) / kFp8Block * sizeof(float)};
    default:
      return {.weight = groups * block_of(format.kind).bytes};
  }
}

size_t matrix_bytes(const WeightFormat& format, size_t rows, size_t cols) {
  const RowBytes row = row_bytes(format, cols);
  const size_t shared = format.scale_rows();
  return rows * (row.weight + row.biases) +
         (rows + shared - 1) / shared * row.scales;
}

bool format_accepts(const WeightFormat& format, size_t cols) {
  if (cols == 0 || format.group_size == 0) return false;
  if (cols % format.group_size != 0) return false;
  return format.kind != WeightKind::kAffine || cols * format.bits % 8 == 0;
}

std::string format_name(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kF32:
      return "float32";
    case WeightKind::kF16:
      return "float16";
    case WeightKind::kBF16:
      return "bfloat16";
    case WeightKind::kAffine:
      return fmt::format("affine {}-bit g{} {}",
                         format.bits,
                         format.group_size,
                         dtype_name(format.scale_dtype));
    default:
      return block_of(format.kind).name;
  }
}

WeightFormat dense_format(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {WeightKind::kF32, 32, 1, DType::kF32};
    case DType::kF16:
      return {WeightKind::kF16, 16, 1, DType::kF32};
    default:
      FLASH_CHECK(dtype == DType::kBF16);
      return {WeightKind::kBF16, 16, 1, DType::kF32};
  }
}

WeightFormat affine_format(int bits, int group_size, DType scale_dtype) {
  return {WeightKind::kAffine,
          static_cast<uint8_t>(bits),
          static_cast<uint16_t>(group_size),
          scale_dtype};
}

WeightFormat block_format(WeightKind kind) {
  const Block& block = block_of(kind);
  return {kind, block.bits, block.values, DType::kF32};
}

}  // namespace mlx_flash
