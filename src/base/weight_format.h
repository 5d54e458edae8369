// SPDX-License-Identifier: MIT
#pragma once

// Weight formats as values: how the numbers of one row of a matrix lie in the
// file. Checkpoints name formats, the planner counts their bytes, kernels
// multiply by them; all three meet here.
//
// A matrix has `rows` rows (outputs) of `cols` values (inputs). In the split
// formats of MLX (affine, mxfp4, mxfp8, nvfp4) a row has up to three parts, in
// different places of the file: packed weights, scales, biases. In the dense
// formats and in GGUF's block formats a row is one run of bytes. In all of
// them rows follow each other without gaps, part by part. In fp8, as DeepSeek
// V3 is published, 128 rows share one row of scales: a float32 for each block
// of 128 by 128, blocks being cut off where the matrix ends.
//
// Sources: MLX mlx/ops.h `quantize`; ggml-common.h (block layouts); inference/
// kernel.py of huggingface.co/deepseek-ai/DeepSeek-V3.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mlx_flash {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kU32,
  kU8,
  kI8,
  kI32,
  kI64,
  kF8E4M3,
};

size_t dtype_bytes(DType dtype);
std::string_view dtype_name(DType dtype);  // "float32", "bfloat16", ...

enum class WeightKind : uint8_t {
  // Dense: cols values of the dtype.
  kF32,
  kF16,
  kBF16,
  // MLX, split in parts. Affine: w = scale * q + bias.
  kAffine,
  kMxfp4,
  kMxfp8,
  kNvfp4,
  // Hugging Face's fp8, split in parts: e4m3 and a scale for each block.
  kFp8,
  // GGUF blocks, as they lie in the file.
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kGgufMxfp4,
};

inline constexpr size_t kFp8Block = 128;  // rows and columns with one scale

struct WeightFormat {
  WeightKind kind = WeightKind::kF32;
  uint8_t bits = 32;                // per value: 2, 3, 4, 5, 6, 8 (affine), ...
  uint16_t group_size = 1;          // values that share a scale; fp8: 1
  DType scale_dtype = DType::kF32;  // of scales and biases (affine only)

  bool operator==(const WeightFormat&) const = default;

  // Has separate `scales` (and, if affine, `biases`) parts.
  bool split() const {
    return kind >= WeightKind::kAffine && kind <= WeightKind::kFp8;
  }
  // Rows that share one row of scales.
  size_t scale_rows() const { return kind == WeightKind::kFp8 ? kFp8Block : 1; }
  bool has_biases() const { return kind == WeightKind::kAffine; }
};

// Bytes of one row of `cols` values in each part; 0 where there is no such
// part; of scales that several rows share, of one row of scales. REQUIRES:
// format_accepts(format, cols).
struct RowBytes {
  size_t weight = 0;
  size_t scales = 0;
  size_t biases = 0;
};
RowBytes row_bytes(const WeightFormat& format, size_t cols);

// Bytes of all parts of a matrix whose row 0 begins a block. REQUIRES: as
// above.
size_t matrix_bytes(const WeightFormat& format, size_t rows, size_t cols);

// Whether a row of `cols` values can be written in this format (cols > 0, a
// multiple of the group or block, whole bytes).
bool format_accepts(const WeightFormat& format, size_t cols);

// "affine 4-bit g64 bf16", "Q4_1", "mxfp4", GGUF's "MXFP4", ...
std::string format_name(const WeightFormat& format);

WeightFormat dense_format(DType dtype);  // REQUIRES: f32, f16 or bf16
WeightFormat affine_format(int bits, int group_size, DType scale_dtype);
// GGUF block formats, mxfp4 (32), mxfp8 (32), nvfp4 (16), fp8: everything but
// the kind follows. REQUIRES: kind is neither dense nor affine.
WeightFormat block_format(WeightKind kind);

}  // namespace mlx_flash
