// SPDX-License-Identifier: MIT
#include "hub/selection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mlx_flash::hub {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<NamedSize> sized(std::initializer_list<const char*> names) {
  std::vector<NamedSize> files;
  for (const char* name : names) files.push_back({name, 1'500'000'000});
  return files;
}

std::vector<NamedSize> small(std::initializer_list<const char*> names) {
  std::vector<NamedSize> files;
  for (const char* name : names) files.push_back({name, 1000});
  return files;
}

TEST(SelectFiles, SafetensorsBeforeGguf) {
  const auto got = select_files(small({"config.json",
                                       "model.safetensors",
                                       "x-Q4_0.gguf",
                                       "a.py",
                                       "sub/config.json",
                                       "consolidated.safetensors",
                                       "pytorch.bin"}),
                                {});
  ASSERT_TRUE(got.ok());
  EXPECT_THAT(got->first, ElementsAre("config.json"));
  EXPECT_THAT(got->weights, ElementsAre("model.safetensors"));
  EXPECT_EQ(got->entry, "");
  EXPECT_FALSE(got->indexed);
}

TEST(SelectFiles, NothingToRunIsAnError) {
  EXPECT_FALSE(select_files({}, {}).ok());
  EXPECT_FALSE(select_files(small({"config.json", "a.bin"}), {}).ok());
}

TEST(SelectFiles, AmbiguousGgufListsAllWithSizes) {
  const auto got = select_files(sized({"a-Q4_0.gguf", "a-Q8_0.gguf"}), {});
  ASSERT_FALSE(got.ok());
  EXPECT_EQ(got.status().code(), StatusCode::kInvalidInput);
  EXPECT_THAT(got.status().message(), HasSubstr("a-Q8_0.gguf (1.5 GB)"));
  EXPECT_THAT(got.status().message(), HasSubstr("--file Q4_0"));
}

TEST(SelectFiles, QuantisationsAreWholeWordsInAnyCase) {
  const auto files = sized(
      {"m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m.q4_0.gguf", "mmproj-Q8_0.gguf"});
  EXPECT_EQ(select_files(files, {.file = "q4_k_s", .include = {}})->entry,
            "m-Q4_K_S.gguf");
  EXPECT_EQ(select_files(files, {.file = "Q4_0", .include = {}})->entry,
            "m.q4_0.gguf");
  EXPECT_FALSE(select_files(files, {.file = "Q4_K", .include = {}}).ok());
  EXPECT_FALSE(select_files(files, {.file = "Q8_0", .include = {}}).ok());
  // By its whole name a helper can be had.
  EXPECT_TRUE(
      select_files(files, {.file = "mmproj-Q8_0.gguf", .include = {}}).ok());
}

TEST(SelectFiles, PartsBelongTogether) {
  const auto files = sized({"d/m-Q8_0-00002-of-00003.gguf",
                            "d/m-Q8_0-00001-of-00003.gguf",
                            "d/m-Q8_0-00003-of-00003.gguf",
                            "m-Q4_0-00001-of-00002.gguf"});
  const auto groups = gguf_groups(files);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_TRUE(groups[0].whole);
  EXPECT_EQ(groups[0].bytes, 4'500'000'000U);
  EXPECT_FALSE(groups[1].whole);
  for (const char* wanted : {"Q8_0", "d/m-Q8_0-00002-of-00003.gguf"}) {
    const auto got = select_files(files, {.file = wanted, .include = {}});
    ASSERT_TRUE(got.ok()) << wanted;
    EXPECT_EQ(got->entry, "d/m-Q8_0-00001-of-00003.gguf");
    EXPECT_EQ(got->weights.size(), 3U);
  }
  EXPECT_FALSE(select_files(files, {.file = "Q4_0", .include = {}}).ok());
}

TEST(SelectFiles, HugePartNumbersAreNoProblem) {
  const auto groups = gguf_groups(sized({"m-00000-of-00000.gguf",
                                         "m-99999-of-99999.gguf",
                                         "-00001-of-00001.gguf"}));
  EXPECT_EQ(groups.size(), 3U);
}

TEST(GgufLabel, IsTheLastWordThatCouldBe) {
  EXPECT_EQ(gguf_label("dir-F16/Qwen3-4B-Q4_K_M.gguf"), "Q4_K_M");
  EXPECT_EQ(gguf_label("m.iq2_xxs.gguf"), "IQ2_XXS");
  EXPECT_EQ(gguf_label("m-BF16-00001-of-00002.gguf"), "BF16");
  EXPECT_EQ(gguf_label("m-mxfp4.gguf"), "MXFP4");
  EXPECT_EQ(gguf_label("model.gguf"), "");
}

TEST(ParseIndex, RefusesWhatIsNone) {
  EXPECT_THAT(*parse_index(R"({"weight_map": {"a": "x", "b": "x"}})"),
              ElementsAre("x"));
  for (const char* text : {"",
                           "[]",
                           "{}",
                           R"({"weight_map": {}})",
                           R"({"weight_map": []})",
                           R"({"weight_map": {"a": 1}})",
                           R"({"weight_map": {"a": "../x"}})"}) {
    EXPECT_FALSE(parse_index(text).ok()) << text;
  }
}

}  // namespace
}  // namespace mlx_flash::hub
