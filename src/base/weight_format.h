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
// them rows follow each other without gaps, part by part.
//
// Sources: MLX mlx/ops.h `quantize`; ggml-common.h (block layouts).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mlx_flash {

enum class DType : uint8_t { kF32, kF16, kBF16, kU32, kU8, kI8, kI32, kI64 };

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

struct WeightFormat {
  WeightKind kind = WeightKind::kF32;
  uint8_t bits = 32;                // per value: 2, 3, 4, 5, 6, 8 (affine), ...
  uint16_t group_size = 1;          // values that share a scale
  DType scale_dtype = DType::kF32;  // of scales and biases (affine only)

  bool operator==(const WeightFormat&) const = default;

  // Has separate `scales` (and, if affine, `biases`) parts.
  bool split() const {
    return kind >= WeightKind::kAffine && kind <= WeightKind::kNvfp4;
  }
  bool has_biases() const { return kind == WeightKind::kAffine; }
};

// Bytes of one row of `cols` values in each part; 0 where there is no such
// part. REQUIRES: format_accepts(format, cols).
struct RowBytes {
  size_t weight = 0;
  size_t scales = 0;
  size_t biases = 0;
  size_t total() const { return weight + scales + biases; }
};
RowBytes row_bytes(const WeightFormat& format, size_t cols);

// Whether a row of `cols` values can be written in this format (cols > 0, a
// multiple of the group or block, whole bytes).
bool format_accepts(const WeightFormat& format, size_t cols);

// "affine 4-bit g64 bf16", "Q4_1", "mxfp4", GGUF's "MXFP4", ...
std::string format_name(const WeightFormat& format);

WeightFormat dense_format(DType dtype);  // REQUIRES: f32, f16 or bf16
WeightFormat affine_format(int bits, int group_size, DType scale_dtype);
// GGUF block formats, mxfp4 (32), mxfp8 (32), nvfp4 (16): everything but the
// kind follows. REQUIRES: kind is neither dense nor affine.
WeightFormat block_format(WeightKind kind);

}  // namespace mlx_flash
