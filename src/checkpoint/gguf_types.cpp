// SPDX-License-Identifier: MIT
#include "checkpoint/gguf_types.h"

namespace mlx_flash {
namespace {

constexpr auto kNoKind = std::nullopt;
constexpr auto kNoDType = std::nullopt;

constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, WeightKind::kF32, DType::kF32},
    {1, "F16", 1, 2, WeightKind::kF16, DType::kF16},
    {2, "Q4_0", 32, 18, WeightKind::kQ4_0, kNoDType},
    {3, "Q4_1", 32, 20, WeightKind::kQ4_1, kNoDType},
    {6, "Q5_0", 32, 22, WeightKind::kQ5_0, kNoDType},
    {7, "Q5_1", 32, 24, WeightKind::kQ5_1, kNoDType},
    {8, "Q8_0", 32, 34, WeightKind::kQ8_0, kNoDType},
    {9, "Q8_1", 32, 36, kNoKind, kNoDType},
    {10, "Q2_K", 256, 84, WeightKind::kQ2_K, kNoDType},
    {11, "Q3_K", 256, 110, WeightKind::kQ3_K, kNoDType},
    {12, "Q4_K", 256, 144, WeightKind::kQ4_K, kNoDType},
    {13, "Q5_K", 256, 176, WeightKind::kQ5_K, kNoDType},
    {14, "Q6_K", 256, 210, WeightKind::kQ6_K, kNoDType},
    {15, "Q8_K", 256, 292, kNoKind, kNoDType},
    {16, "IQ2_XXS", 256, 66, kNoKind, kNoDType},
    {17, "IQ2_XS", 256, 74, kNoKind, kNoDType},
    {18, "IQ3_XXS", 256, 98, kNoKind, kNoDType},
    {19, "IQ1_S", 256, 50, kNoKind, kNoDType},
    {20, "IQ4_NL", 32, 18, kNoKind, kNoDType},
    {21, "IQ3_S", 256, 110, kNoKind, kNoDType},
    {22, "IQ2_S", 256, 82, kNoKind, kNoDType},
    {23, "IQ4_XS", 256, 136, kNoKind, kNoDType},
    {24, "I8", 1, 1, kNoKind, DType::kI8},
    {25, "I16", 1, 2, kNoKind, kNoDType},
    {26, "I32", 1, 4, kNoKind, DType::kI32},
    {27, "I64", 1, 8, kNoKind, DType::kI64},
    {28, "F64", 1, 8, kNoKind, kNoDType},
    {29, "IQ1_M", 256, 56, kNoKind, kNoDType},
    {30, "BF16", 1, 2, WeightKind::kBF16, DType::kBF16},
    {34, "TQ1_0", 256, 54, kNoKind, kNoDType},
    {35, "TQ2_0", 256, 66, kNoKind, kNoDType},
    {39, "MXFP4", 32, 17, WeightKind::kGgufMxfp4, kNoDType},
};

}  // namespace

const GgmlType* find_ggml_type(uint32_t id) {
  for (const GgmlType& row : kTypes) {
    if (row.id == id) return &row;
  }
  return nullptr;
}

}  // namespace mlx_flash
