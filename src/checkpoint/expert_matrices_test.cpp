// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/testing/model_files.h"

namespace mlx_flash {
namespace {

using ::testing::HasSubstr;
using testing::safetensors_bytes;
using testing::TempFolder;
using testing::TestTensor;
using testing::zeros;

constexpr const char* kStack = "model.layers.0.mlp.switch_mlp.up_proj";
constexpr const char* kSingle = "model.layers.0.mlp.experts.";

ExpertSource source(bool single, uint64_t cols, bool bias = false) {
  return {.path = kStack,
          .before = single ? kSingle : "",
          .after = single ? ".up_proj" : "",
          .fused = "",
          .experts = 3,
          .rows = 5,
          .cols = cols,
          .bias = bias};
}

Result<Checkpoint> open(const TempFolder& folder,
                        const std::vector<TestTensor>& tensors,
                        const char* config = "{}") {
  folder.write("config.json", config);
  folder.write("model.safetensors", safetensors_bytes(tensors));
  return Checkpoint::open(folder.path());
}

uint64_t offset_of(const Checkpoint& checkpoint, const std::string& name) {
  return checkpoint.find(name)->range.offset;
}

TEST(CheckpointExperts, SlicesAStackWithItsBias) {
  TempFolder folder;
  const std::string stack = kStack;
  const auto opened = open(folder,
                           {zeros("before", "F32", {7}),
                            zeros(stack + ".weight", "BF16", {3, 5, 8}),
                            zeros(stack + ".bias", "F32", {3, 5})});
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto experts = opened->experts(source(false, 8, true));
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  EXPECT_EQ(experts->format, dense_format(DType::kBF16));
  ASSERT_EQ(experts->experts.size(), 3u);
  ASSERT_EQ(experts->bias.size(), 3u);
  for (uint64_t e = 0; e < 3; ++e) {
    const FileRange& weight = experts->experts[e].weight;
    EXPECT_EQ(weight.offset,
              offset_of(*opened, stack + ".weight") + e * 5 * 8 * 2);
    EXPECT_EQ(weight.bytes, 5u * 8 * 2);
    EXPECT_EQ(experts->experts[e].scales.bytes, 0u);
    EXPECT_EQ(experts->bias[e].offset,
              offset_of(*opened, stack + ".bias") + e * 5 * 4);
  }
}

TEST(CheckpointExperts, FindsEachExpertsOwnTensors) {
  TempFolder folder;
  std::vector<TestTensor> tensors;
  for (const int e : {2, 0, 1}) {
    tensors.push_back(
        zeros(fmt::format("{}{}.up_proj.weight", kSingle, e), "F16", {5, 8}));
  }
  const auto opened = open(folder, tensors);
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto experts = opened->experts(source(true, 8));
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  for (uint64_t e = 0; e < 3; ++e) {
    EXPECT_EQ(
        experts->experts[e].weight.offset,
        offset_of(*opened, fmt::format("{}{}.up_proj.weight", kSingle, e)));
  }
}

// mlx-lm looks up the stack's path whatever the layout: a listed path wins,
// others are inferred.
TEST(CheckpointExperts, AreQuantisedAsTheStackIs) {
  TempFolder folder;
  std::vector<TestTensor> tensors;
  for (int e = 0; e < 3; ++e) {
    const std::string path = fmt::format("{}{}.up_proj", kSingle, e);
    tensors.push_back(zeros(path + ".weight", "U32", {5, 16}));
    tensors.push_back(zeros(path + ".scales", "BF16", {5, 2}));
    tensors.push_back(zeros(path + ".biases", "BF16", {5, 2}));
  }
  // 16 words for 64 columns: 8 bits in groups of 32, whatever the top says.
  const auto inferred = open(
      folder, tensors, R"({"quantization": {"bits": 4, "group_size": 64}})");
  ASSERT_TRUE(inferred.ok()) << inferred.status().message();
  const auto experts = inferred->experts(source(true, 64));
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  EXPECT_EQ(experts->format, affine_format(8, 32, DType::kBF16));
  EXPECT_EQ(experts->experts[1].scales.bytes, 5u * 2 * 2);

  const auto listed = open(folder,
                           tensors,
                           R"({"quantization": {"bits": 4, "group_size": 64,
      "model.layers.0.mlp.switch_mlp.up_proj": {"bits": 8, "group_size": 64}}})");
  ASSERT_TRUE(listed.ok()) << listed.status().message();
  EXPECT_THAT(listed->experts(source(true, 64)).status().message(),
              HasSubstr("[5, 1] is wanted"));
}

// granitemoe: gate's rows of an expert, then up's.
TEST(CheckpointExperts, CutsRowsOutOfAFusedStack) {
  TempFolder folder;
  const std::string fused = "model.layers.0.mlp.input_linear";
  const auto opened = open(folder,
                           {zeros("before", "F32", {7}),
                            zeros(fused + ".weight", "BF16", {3, 10, 8}),
                            zeros(fused + ".bias", "F32", {3, 10})});
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  ExpertSource up = source(false, 8, true);
  up.fused = fused;
  up.fused_rows = 10;
  up.first_row = 5;
  const auto experts = opened->experts(up);
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  EXPECT_EQ(experts->rows, 5u);
  for (uint64_t e = 0; e < 3; ++e) {
    const FileRange& weight = experts->experts[e].weight;
    EXPECT_EQ(weight.offset,
              offset_of(*opened, fused + ".weight") + (e * 10 + 5) * 8 * 2);
    EXPECT_EQ(weight.bytes, 5u * 8 * 2);
    EXPECT_EQ(experts->bias[e].offset,
              offset_of(*opened, fused + ".bias") + (e * 10 + 5) * 4);
    EXPECT_EQ(experts->bias[e].bytes, 5u * 4);
  }
  up.fused_rows = 15;
  EXPECT_THAT(opened->experts(up).status().message(),
              HasSubstr("[3, 15, 8] is wanted"));
}

TEST(CheckpointExperts, ReadsPublishedMxfp4Blocks) {
  TempFolder folder;
  const std::string path = "model.layers.0.mlp.experts.gate_up_proj";
  ExpertSource both;
  both.path = kStack;
  both.fused = path;
  both.mxfp4_blocks = both.bias = true;
  both.experts = 3;
  both.rows = both.fused_rows = 10;
  both.cols = 64;
  const auto opened = open(folder,
                           {zeros(path + "_blocks", "U8", {3, 10, 2, 16}),
                            zeros(path + "_scales", "U8", {3, 10, 2}),
                            zeros(path + "_bias", "BF16", {3, 10})});
  ASSERT_TRUE(opened.ok()) << opened.status().message();
  const auto experts = opened->experts(both);
  ASSERT_TRUE(experts.ok()) << experts.status().message();
  EXPECT_EQ(experts->format, block_format(WeightKind::kMxfp4));
  EXPECT_EQ(experts->experts[2].weight.offset,
            offset_of(*opened, path + "_blocks") + 2u * 10 * 32);
  EXPECT_EQ(experts->experts[2].weight.bytes, 10u * 32);
  EXPECT_EQ(experts->experts[2].scales.offset,
            offset_of(*opened, path + "_scales") + 2u * 10 * 2);
  EXPECT_EQ(experts->experts[2].scales.bytes, 10u * 2);
  EXPECT_EQ(experts->bias[1].bytes, 10u * 2);

  const auto wrong = open(folder,
                          {zeros(path + "_blocks", "U8", {3, 10, 2, 16}),
                           zeros(path + "_scales", "F16", {3, 10, 2})});
  ASSERT_TRUE(wrong.ok());
  EXPECT_THAT(wrong->experts(both).status().message(),
              HasSubstr("must be uint8 [3, 10, 2], it is float16 [3, 10, 2]"));
  both.cols = 48;
  EXPECT_THAT(opened->experts(both).status().message(),
              HasSubstr("48 columns cannot be mxfp4"));
}

TEST(CheckpointExperts, RefusesWhatDoesNotFit) {
  TempFolder folder;
  const std::string stack = kStack;
  const auto two = open(folder, {zeros(stack + ".weight", "F32", {2, 5, 8})});
  ASSERT_TRUE(two.ok());
  EXPECT_THAT(two->experts(source(false, 8)).status().message(),
              HasSubstr("[2, 5, 8], [3, 5, 8] is wanted"));
  const auto no_bias =
      open(folder, {zeros(stack + ".weight", "F32", {3, 5, 8})});
  ASSERT_TRUE(no_bias.ok());
  EXPECT_THAT(no_bias->experts(source(false, 8, true)).status().message(),
              HasSubstr("up_proj.bias' is missing"));
  std::vector<TestTensor> mixed;
  for (int e = 0; e < 3; ++e) {
    mixed.push_back(zeros(fmt::format("{}{}.up_proj.weight", kSingle, e),
                          e == 1 ? "F32" : "F16",
                          {5, 8}));
  }
  const auto formats = open(folder, mixed);
  ASSERT_TRUE(formats.ok());
  EXPECT_THAT(formats->experts(source(true, 8)).status().message(),
              HasSubstr("experts.1.up_proj is float32, the experts before it "
                        "are float16"));
}

}  // namespace
}  // namespace mlx_flash
