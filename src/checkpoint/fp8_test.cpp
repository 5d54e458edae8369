// SPDX-License-Identifier: MIT
// fp8 with a scale for each block, as DeepSeek V3 is published.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/testing/model_files.h"

namespace mlx_flash {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TempFolder;
using testing::TestTensor;
using testing::zeros;

constexpr const char* kModule = "model.layers.0.mlp.up_proj";

std::string config(const char* more = R"("fmt": "e4m3")",
                   const char* block = "[128, 128]",
                   const char* type = "deepseek_v3") {
  return fmt::format(
      R"({{"model_type": "{}", "quantization_config": {{"quant_method": "fp8",
      "activation_scheme": "dynamic", "weight_block_size": {}, {}}}}})",
      type,
      block,
      more);
}

// A matrix [rows, cols] with its scales.
std::vector<TestTensor> fp8(uint64_t rows, uint64_t cols) {
  const std::string path = kModule;
  return {zeros(path + ".weight", "F8_E4M3", {rows, cols}),
          zeros(path + ".weight_scale_inv",
                "F32",
                {(rows + 127) / 128, (cols + 127) / 128})};
}

Result<Checkpoint> open(const TempFolder& folder,
                        const std::vector<TestTensor>& tensors,
                        const std::string& json) {
  folder.write("config.json", json);
  folder.write("model.safetensors", safetensors_bytes(tensors));
  return Checkpoint::open(folder.path());
}

std::string error_of(const std::vector<TestTensor>& tensors,
                     const std::string& json,
                     uint64_t rows = 200,
                     uint64_t cols = 300) {
  TempFolder folder;
  const auto opened = open(folder, tensors, json);
  EXPECT_TRUE(opened.ok()) << opened.status().message();
  if (!opened.ok()) return "";
  const auto matrix = opened->matrix(kModule, rows, cols);
  return matrix.ok() ? "" : std::string(matrix.status().message());
}

TEST(CheckpointFp8, FindsWeightsAndScalesOfAnySize) {
  for (const auto& [rows, cols] :
       std::initializer_list<std::pair<uint64_t, uint64_t>>{
           {256, 384}, {200, 300}, {1, 1}, {128, 129}, {127, 128}}) {
    TempFolder folder;
    auto tensors = fp8(rows, cols);
    tensors.push_back(zeros("lm_head.weight", "BF16", {8, 16}));
    const auto opened = open(folder, tensors, config());
    ASSERT_TRUE(opened.ok()) << opened.status().message();
    const auto matrix = opened->matrix(kModule, rows, cols);
    ASSERT_TRUE(matrix.ok()) << matrix.status().message();
    EXPECT_EQ(matrix->format, block_format(WeightKind::kFp8));
    EXPECT_EQ(matrix->weight.bytes, rows * cols);
    EXPECT_EQ(matrix->scales.bytes,
              (rows + 127) / 128 * ((cols + 127) / 128) * 4);
    EXPECT_EQ(matrix->bytes(), matrix_bytes(matrix->format, rows, cols));
    // What is listed in modules_to_not_convert, or not converted anyway.
    const auto head = opened->matrix("lm_head", 8, 16);
    ASSERT_TRUE(head.ok()) << head.status().message();
    EXPECT_EQ(head->format, dense_format(DType::kBF16));
  }
}

TEST(CheckpointFp8, FindsEachExpertsOwnTensors) {
  TempFolder folder;
  std::vector<TestTensor> tensors;
  for (int e = 0; e < 3; ++e) {
    const auto path = fmt::format("model.layers.0.mlp.experts.{}.up_proj", e);
    tensors.push_back(zeros(path + ".weight", "F8_E4M3", {130, 260}));
    tensors.push_back(zeros(path + ".weight_scale_inv", "F32", {2, 3}));
  }
  const auto opened = open(folder, tensors, config());
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto experts =
      opened->experts({.path = "model.layers.0.mlp.switch_mlp.up_proj",
                       .before = "model.layers.0.mlp.experts.",
                       .after = ".up_proj",
                       .fused = "",
                       .experts = 3,
                       .rows = 130,
                       .cols = 260});
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  EXPECT_EQ(experts->format, block_format(WeightKind::kFp8));
  ASSERT_EQ(experts->experts.size(), 3u);
  for (int e = 0; e < 3; ++e) {
    const auto path = fmt::format("model.layers.0.mlp.experts.{}.up_proj", e);
    const auto& parts = experts->experts[static_cast<size_t>(e)];
    EXPECT_EQ(parts.weight.offset,
              opened->find(path + ".weight")->range.offset);
    EXPECT_EQ(parts.scales.offset,
              opened->find(path + ".weight_scale_inv")->range.offset);
    EXPECT_EQ(parts.scales.bytes, 2u * 3 * 4);
  }
}

TEST(CheckpointFp8, NamesWhatIsWrongWithTheTensors) {
  const std::string scale = std::string(kModule) + ".weight_scale_inv";
  ASSERT_EQ(error_of(fp8(200, 300), config()), "");

  auto tensors = fp8(200, 300);
  tensors.pop_back();
  EXPECT_THAT(error_of(tensors, config()),
              AllOf(HasSubstr(scale), HasSubstr("missing")));
  for (const auto& shape : std::vector<std::vector<uint64_t>>{
           {1, 3}, {3, 2}, {2, 4}, {6}, {1, 2, 3}}) {
    tensors = fp8(200, 300);
    tensors.back() = zeros(scale, "F32", shape);
    EXPECT_THAT(error_of(tensors, config()),
                AllOf(HasSubstr(scale), HasSubstr("[2, 3]")));
  }
  for (const char* dtype : {"BF16", "F16", "U8", "F8_E4M3"}) {
    tensors.back() = zeros(scale, dtype, {2, 3});
    EXPECT_THAT(error_of(tensors, config()),
                AllOf(HasSubstr(scale), HasSubstr("float32 is wanted")));
  }
  EXPECT_THAT(error_of(fp8(200, 300), config(), 200, 299),
              HasSubstr("[200, 299]"));
  EXPECT_THAT(error_of(fp8(0, 300), config(), 0), HasSubstr("empty"));

  tensors = fp8(200, 300);
  tensors.front() = zeros(std::string(kModule) + ".weight", "BF16", {200, 300});
  EXPECT_THAT(error_of(tensors, config()),
              AllOf(HasSubstr(scale), HasSubstr("bfloat16")));
  tensors.front() =
      zeros(std::string(kModule) + ".weight", "F8_E5M2", {200, 300});
  EXPECT_THAT(error_of(tensors, config()), HasSubstr("F8_E5M2"));
}

TEST(CheckpointFp8, IsReadOnlyWhereTheConfigSaysSo) {
  EXPECT_THAT(
      error_of(fp8(200, 300), R"({"model_type": "deepseek_v3"})"),
      AllOf(HasSubstr("float8_e4m3"), HasSubstr("no quantization_config")));
  EXPECT_THAT(error_of(fp8(200, 300),
                       R"({"model_type": "deepseek_v3", "quantization":
                       {"group_size": 64, "bits": 4}})"),
              HasSubstr("no quantization_config"));
  EXPECT_THAT(
      error_of(fp8(200, 300),
               config(R"("fmt": "e4m3")", "[128, 128]", "llama")),
      AllOf(
          HasSubstr("'fp8'"), HasSubstr("deepseek_v3"), HasSubstr("convert")));
  for (const char* block : {"[64, 128]", "[128]", "128", "null"}) {
    EXPECT_THAT(
        error_of(fp8(200, 300), config(R"("fmt": "e4m3")", block)),
        AllOf(HasSubstr("weight_block_size"), HasSubstr("[128, 128] only")));
  }
  EXPECT_THAT(error_of(fp8(200, 300), config(R"("fmt": "e5m2")")),
              AllOf(HasSubstr("fmt"), HasSubstr("e5m2")));
  EXPECT_THAT(error_of(fp8(200, 300),
                       R"({"model_type": "deepseek_v3", "quantization_config": {
               "quant_method": "fp8", "weight_block_size": [128, 128],
               "activation_scheme": "static"}})"),
              AllOf(HasSubstr("activation_scheme"), HasSubstr("static")));
  // As V3.1 has it: the scales are float32 all the same.
  EXPECT_EQ(error_of(fp8(200, 300), config(R"("scale_fmt": "ue8m0")")), "");
}

TEST(CheckpointFp8, StackedWeightsAreRefused) {
  TempFolder folder;
  const std::string path = kModule;
  const auto opened =
      open(folder,
           {zeros(path + ".weight", "F8_E4M3", {2, 128, 128}),
            zeros(path + ".weight_scale_inv", "F32", {2, 1, 1})},
           config());
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto matrix = opened->stacked_matrix(path, 2, 128, 128);
  ASSERT_FALSE(matrix.ok());
  EXPECT_THAT(std::string(matrix.status().message()), HasSubstr("stacked"));
}

}  // namespace
}  // namespace mlx_flash
