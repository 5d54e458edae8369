// SPDX-License-Identifier: MIT
#include "checkpoint/quantization.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/testing/model_files.h"

namespace mlx_flash {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;
using testing::TestTensor;
using testing::zeros;

// Parts of a matrix as MLX packs it.
std::vector<TestTensor> packed(const std::string& path,
                               uint64_t rows,
                               uint64_t cols,
                               uint64_t bits,
                               uint64_t group,
                               const char* scales = "BF16") {
  std::vector<TestTensor> parts = {
      zeros(path + ".weight", "U32", {rows, cols * bits / 32}),
      zeros(path + ".scales", scales, {rows, cols / group})};
  if (std::string(scales) != "U8") {
    parts.push_back(zeros(path + ".biases", scales, {rows, cols / group}));
  }
  return parts;
}

Result<Matrix> matrix_of(const std::string& config,
                         const std::vector<TestTensor>& tensors,
                         uint64_t rows,
                         uint64_t cols) {
  TempFolder folder;
  folder.write("config.json", config);
  folder.write("model.safetensors", testing::safetensors_bytes(tensors));
  FLASH_ASSIGN_OR_RETURN(const auto checkpoint,
                         Checkpoint::open(folder.path()));
  return checkpoint.matrix("m", rows, cols);
}

constexpr const char* kAffine =
    R"({"quantization": {"bits": 4, "group_size": 64}})";

TEST(Quantization, InfersEveryAffineSettingFromTheShapes) {
  for (const uint64_t bits : {2U, 3U, 4U, 5U, 6U, 8U}) {
    for (const uint64_t group : {32U, 64U, 128U}) {
      for (const auto& [name, dtype] : {std::pair("BF16", DType::kBF16),
                                        std::pair("F16", DType::kF16),
                                        std::pair("F32", DType::kF32)}) {
        const auto matrix =
            matrix_of(kAffine, packed("m", 3, 384, bits, group, name), 3, 384);
        ASSERT_TRUE(matrix.ok()) << matrix.status().message();
        EXPECT_EQ(matrix->format,
                  affine_format(
                      static_cast<int>(bits), static_cast<int>(group), dtype));
        const auto row = row_bytes(matrix->format, 384);
        EXPECT_EQ(matrix->weight.bytes, 3 * row.weight);
        EXPECT_EQ(matrix->scales.bytes, 3 * row.scales);
        EXPECT_EQ(matrix->biases.bytes, 3 * row.biases);
      }
    }
  }
}

TEST(Quantization, TellsTheFloatModesByBitsAndGroup) {
  const std::tuple<uint64_t, uint64_t, WeightKind> modes[] = {
      {4, 32, WeightKind::kMxfp4},
      {8, 32, WeightKind::kMxfp8},
      {4, 16, WeightKind::kNvfp4}};
  for (const auto& [bits, group, kind] : modes) {
    const auto matrix =
        matrix_of(kAffine, packed("m", 2, 96, bits, group, "U8"), 2, 96);
    ASSERT_TRUE(matrix.ok()) << matrix.status().message();
    EXPECT_EQ(matrix->format, block_format(kind));
    EXPECT_EQ(matrix->biases.bytes, 0U);
  }
  EXPECT_THAT(matrix_of(kAffine, packed("m", 2, 96, 8, 16, "U8"), 2, 96)
                  .status()
                  .message(),
              HasSubstr("8 bits with groups of 16"));
}

TEST(Quantization, ListedPathWithoutModeIsAffineWhateverTheTopLevelSays) {
  const std::string config =
      R"({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4",
          "m": {"bits": 8, "group_size": 64}}})";
  const auto matrix = matrix_of(config, packed("m", 2, 128, 8, 64), 2, 128);
  ASSERT_TRUE(matrix.ok()) << matrix.status().message();
  EXPECT_EQ(matrix->format, affine_format(8, 64, DType::kBF16));
  // Even where shapes and scales would say mxfp4.
  EXPECT_FALSE(
      matrix_of(config, packed("m", 2, 128, 4, 32, "U8"), 2, 128).ok());
}

TEST(Quantization, ListedPathsTakeTheirSettingFromTheList) {
  const auto config = [](const char* entry) {
    return fmt::format(
        R"({{"quantization": {{"bits": 4, "group_size": 32, "mode": "mxfp4",
            "m": {}}}}})",
        entry);
  };
  EXPECT_EQ(
      matrix_of(config("true"), packed("m", 2, 64, 4, 32, "U8"), 2, 64)->format,
      block_format(WeightKind::kMxfp4));
  EXPECT_EQ(matrix_of(config(R"({"mode": "nvfp4"})"),
                      packed("m", 2, 64, 4, 16, "U8"),
                      2,
                      64)
                ->format,
            block_format(WeightKind::kNvfp4));
  // Listed, so the shapes must be the setting's.
  EXPECT_THAT(matrix_of(config(R"({"bits": 8, "group_size": 64})"),
                        packed("m", 2, 64, 4, 64),
                        2,
                        64)
                  .status()
                  .message(),
              HasSubstr("'m.weight' has the shape [2, 8], [2, 16] is wanted"));
  EXPECT_THAT(matrix_of(config(R"({"bits": 8, "group_size": 64})"),
                        {zeros("m.weight", "BF16", {2, 64})},
                        2,
                        64)
                  .status()
                  .message(),
              HasSubstr("'m.scales' is missing"));
  for (const char* bad : {"3",
                          "\"x\"",
                          "[1]",
                          R"({"bits": 7})",
                          R"({"bits": 1})",
                          R"({"group_size": 16})",
                          R"({"bits": 1.5})",
                          R"({"mode": "q4"})",
                          R"({"mode": "mxfp4", "bits": 8})",
                          R"({"quantize_input": true})"}) {
    const auto matrix =
        matrix_of(config(bad), packed("m", 2, 64, 4, 64), 2, 64);
    EXPECT_THAT(matrix.status().message(), HasSubstr("m")) << bad;
    EXPECT_EQ(exit_code(matrix.status()), 2);
  }
}

TEST(Quantization, LeavesMatricesWithoutScalesDense) {
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    // 40 columns: no multiple of any group.
    const auto matrix =
        matrix_of(kAffine, {zeros("m.weight", dtype, {2, 40})}, 2, 40);
    ASSERT_TRUE(matrix.ok()) << matrix.status().message();
    EXPECT_FALSE(matrix->format.split());
  }
  const std::string listed_false =
      R"({"quantization": {"bits": 4, "group_size": 64, "m": false}})";
  EXPECT_TRUE(
      matrix_of(listed_false, {zeros("m.weight", "BF16", {2, 64})}, 2, 64)
          .ok());
  EXPECT_FALSE(matrix_of(listed_false, packed("m", 2, 64, 4, 64), 2, 64).ok());
}

TEST(Quantization, ChecksEveryPart) {
  const auto error = [](std::vector<TestTensor> parts) {
    const auto matrix = matrix_of(kAffine, parts, 4, 128);
    return matrix.ok() ? "" : matrix.status().message();
  };
  auto good = packed("m", 4, 128, 4, 64);
  EXPECT_EQ(error(good), "");
  auto parts = good;
  parts[0] = zeros("m.weight", "U32", {3, 16});
  EXPECT_THAT(error(parts), HasSubstr("'m.weight' has the shape [3, 16]"));
  parts[0] = zeros("m.weight", "I32", {4, 16});
  EXPECT_THAT(error(parts), HasSubstr("int32, uint32 is wanted"));
  parts = good;
  parts[1] = zeros("m.scales", "BF16", {3, 2});
  EXPECT_THAT(error(parts), HasSubstr("'m.scales'"));
  parts[1] = zeros("m.scales", "BF16", {4, 3});
  EXPECT_NE(error(parts), "");
  parts[1] = zeros("m.scales", "BF16", {4, 0});
  EXPECT_THAT(error(parts), HasSubstr("m: cannot infer"));
  parts[1] = zeros("m.scales", "I32", {4, 2});
  EXPECT_THAT(error(parts), HasSubstr("a float is wanted"));
  parts[1] = zeros("m.scales", "F32", {4, 2});  // biases are BF16
  EXPECT_THAT(error(parts), HasSubstr("'m.biases' is bfloat16"));
  parts = good;
  parts[2] = zeros("m.biases", "BF16", {4, 1});
  EXPECT_THAT(error(parts), HasSubstr("'m.biases'"));
  parts.pop_back();
  EXPECT_THAT(error(parts), HasSubstr("'m.biases' is missing"));
  parts = packed("m", 4, 128, 4, 32, "U8");
  parts.push_back(zeros("m.biases", "U8", {4, 4}));
  EXPECT_THAT(error(parts), HasSubstr("m.biases beside mxfp4"));
  parts = packed("m", 4, 128, 4, 16, "U8");
  parts.push_back(zeros("m.global_scale", "F32", {1}));
  EXPECT_THAT(error(parts), HasSubstr("m.global_scale"));
  EXPECT_THAT(error(packed("m", 4, 128, 1, 64)), HasSubstr("1 bits"));
  EXPECT_FALSE(matrix_of(kAffine, good, 4, ~0ULL).ok());
  EXPECT_FALSE(matrix_of(kAffine, good, 4, 0).ok());
  EXPECT_FALSE(matrix_of(kAffine, good, 0, 128).ok());
}

TEST(Quantization, TakesOlderConfigsAndRefusesOtherMethodsByName) {
  const auto legacy = [](const char* method) {
    return fmt::format(R"({{"quantization_config": {{"quant_method": "{}"}}}})",
                       method);
  };
  const auto parts = packed("m", 2, 64, 4, 32, "U8");
  EXPECT_TRUE(matrix_of(legacy("mxfp4"), parts, 2, 64).ok());
  EXPECT_TRUE(matrix_of(R"({"text_config": {"quantization_config":
      {"quant_method": "mxfp4"}}})",
                        parts,
                        2,
                        64)
                  .ok());
  EXPECT_TRUE(
      matrix_of(legacy("mxfp8"), packed("m", 2, 64, 8, 32, "U8"), 2, 64).ok());
  for (const char* method : {"awq",
                             "gptq",
                             "bitnet",
                             "fp8",
                             "compressed-tensors",
                             "modelopt",
                             "exl2"}) {
    const auto matrix = matrix_of(legacy(method), parts, 2, 64);
    EXPECT_EQ(matrix.status().code(), StatusCode::kUnsupported);
    EXPECT_THAT(matrix.status().message(), HasSubstr(method));
  }
  EXPECT_THAT(
      matrix_of("{}", packed("m", 2, 64, 4, 64), 2, 64).status().message(),
      HasSubstr("config.json has no quantization"));
}

}  // namespace
}  // namespace mlx_flash
