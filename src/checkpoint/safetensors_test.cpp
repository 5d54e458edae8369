// SPDX-License-Identifier: MIT
#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>

#include "checkpoint/testing/model_files.h"

namespace mlx_flash {
namespace {

using ::testing::HasSubstr;
using testing::raw_bytes;
using testing::safetensors_bytes;
using testing::safetensors_with_header;
using testing::zeros;

Result<std::vector<SafetensorsEntry>> parse(const std::string& bytes) {
  const MemorySource source("f.safetensors", std::as_bytes(std::span(bytes)));
  return read_safetensors_header(source);
}

std::string error_of(const std::string& bytes) {
  const auto entries = parse(bytes);
  if (entries.ok()) return "";
  EXPECT_THAT(entries.status().message(), HasSubstr("f.safetensors"));
  EXPECT_EQ(entries.status().message().find('\n'), std::string::npos);
  return entries.status().message();
}

// The message for a header followed by 16 bytes of data.
std::string header_error(std::string_view header) {
  return error_of(safetensors_with_header(header, std::string(16, 'd')));
}

TEST(Safetensors, FindsEveryTensor) {
  const auto entries = parse(safetensors_bytes({zeros("a", "F32", {2, 3}),
                                                zeros("b.scales", "BF16", {4}),
                                                zeros("scalar", "I64", {}),
                                                zeros("none", "F16", {0, 5})}));
  ASSERT_TRUE(entries.ok()) << entries.status().message();
  ASSERT_EQ(entries->size(), 4U);
  const auto& a = (*entries)[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kF32);
  EXPECT_THAT(a.shape, ::testing::ElementsAre(2, 3));
  EXPECT_EQ(a.bytes, 24U);
  EXPECT_EQ((*entries)[1].offset, a.offset + 24);
  EXPECT_EQ((*entries)[1].dtype, DType::kBF16);
  EXPECT_EQ((*entries)[3].bytes, 0U);
}

TEST(Safetensors, TakesAnyOrderHolesMetadataAndUnicode) {
  const auto entries = parse(safetensors_with_header(
      R"(  {"__metadata__": {"a": "{\"x\": [1]}", "b": ""},
      "\u00e9\"q": {"data_offsets": [8, 12], "shape": [1], "dtype": "F32"},
      "x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}   )",
      std::string(20, 'd')));
  ASSERT_TRUE(entries.ok()) << entries.status().message();
  EXPECT_EQ((*entries)[0].name, "x");
  EXPECT_EQ((*entries)[1].name, "\xc3\xa9\"q");
}

TEST(Safetensors, KeepsTensorsOfDtypesItCannotUse) {
  const auto entries =
      parse(safetensors_bytes({zeros("d", "F64", {2}), zeros("n", "X9", {3})}));
  ASSERT_TRUE(entries.ok());
  EXPECT_EQ((*entries)[0].dtype, std::nullopt);
  EXPECT_EQ((*entries)[1].dtype_text, "X9");
  EXPECT_THAT(
      header_error(R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,4]}})"),
      HasSubstr("does not take 4 bytes"));
}

TEST(Safetensors, RefusesLengthsTheFileCannotHave) {
  EXPECT_THAT(error_of(""), HasSubstr("too few"));
  EXPECT_THAT(error_of("1234567"), HasSubstr("too few"));
  EXPECT_THAT(error_of(raw_bytes<uint64_t>(10'000'000'000) + "{}"),
              HasSubstr("claims 10000000000 bytes"));
  EXPECT_THAT(error_of(raw_bytes<uint64_t>(~0ULL) + "{}"), HasSubstr("claims"));
  EXPECT_THAT(error_of(raw_bytes<uint64_t>(3) + "{}"), HasSubstr("claims 3"));
  EXPECT_NE(error_of(raw_bytes<uint64_t>(0)), "");
}

TEST(Safetensors, RefusesAFileCutAnywhere) {
  const std::string whole = safetensors_bytes(testing::tiny_llama_tensors());
  ASSERT_TRUE(parse(whole).ok());
  for (size_t bytes = 0; bytes < whole.size(); bytes += 7) {
    EXPECT_NE(error_of(whole.substr(0, bytes)), "") << bytes;
  }
  EXPECT_NE(error_of(whole.substr(0, whole.size() - 1)), "");
}

TEST(Safetensors, RefusesOffsetsThatCannotBe) {
  const auto one = [](const char* offsets) {
    return header_error(std::string(R"({"t":{"dtype":"U8","shape":[4],)") +
                        R"("data_offsets":)" + offsets + "}}");
  };
  EXPECT_EQ(one("[12,16]"), "");
  EXPECT_THAT(one("[13,17]"), HasSubstr("tensor 't': data_offsets [13, 17]"));
  EXPECT_THAT(one("[4,0]"), HasSubstr("do not lie inside"));
  EXPECT_THAT(one("[18446744073709551612,0]"), HasSubstr("do not lie inside"));
  EXPECT_THAT(one("[0,18446744073709551616]"), HasSubstr("64 bits"));
  EXPECT_THAT(one("[0,3]"), HasSubstr("does not take 3 bytes"));
  for (const char* bad : {"[0]",
                          "[]",
                          "[0,4,8]",
                          "[-4,0]",
                          "[0.0,4.0]",
                          "[\"0\",4]",
                          "4",
                          "null",
                          "[[0],4]",
                          "{\"a\":1}",
                          "true"}) {
    EXPECT_THAT(one(bad), HasSubstr("tensor 't'")) << bad;
  }
}

TEST(Safetensors, RefusesOverlapsAndDuplicates) {
  EXPECT_THAT(
      header_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                       "b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})"),
      HasSubstr("'a' and 'b' overlap at data offset 3"));
  EXPECT_THAT(
      header_error(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                       "a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})"),
      HasSubstr("'a' twice"));
  EXPECT_THAT(header_error(R"({"a":{"dtype":"U8","dtype":"U8"}})"),
              HasSubstr("'dtype' twice"));
}

TEST(Safetensors, RefusesShapesThatOverflow) {
  EXPECT_THAT(
      header_error(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],
                       "data_offsets":[0,0]}})"),
      HasSubstr("overflows"));
  EXPECT_THAT(header_error(R"({"a":{"dtype":"F32","shape":[4611686018427387905],
                       "data_offsets":[0,4]}})"),
              HasSubstr("does not take"));
  EXPECT_THAT(header_error(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],
                       "data_offsets":[0,1]}})"),
              HasSubstr("more than 8 dimensions"));
}

TEST(Safetensors, RefusesOtherJson) {
  for (const char* header : {"",
                             "[]",
                             "3",
                             "null",
                             "{",
                             "{}}",
                             "{} x",
                             "{\"a\":1}",
                             "{\"a\":[]}",
                             "{\"a\":{}}",
                             "{\"\":{}}",
                             "{\"__metadata__\":1}",
                             "{\"__metadata__\":{\"a\":[1]}}",
                             "{\"__metadata__\":{\"a\":{}}}",
                             "{\"a\":{\"dtype\":\"U8\"}}",
                             "{\"a\":{\"dtype\":5}}",
                             "{\"a\":{\"shape\":5}}",
                             "{\"a\":{\"more\":5}}",
                             "{\"a\":{\"shape\":[],\"data_offsets\":[0,1]}}",
                             "{\"a\":{\"dtype\":\"\",\"shape\":[],"
                             "\"data_offsets\":[0,0]}}"}) {
    EXPECT_NE(header_error(header), "") << header;
  }
  EXPECT_EQ(header_error("{}"), "");
}

TEST(Safetensors, StopsAtTokensThatNeverEnd) {
  EXPECT_THAT(header_error("{\"" + std::string(3'000'000, 'a')),
              HasSubstr("never ends"));
  EXPECT_THAT(header_error("{\"a\": " + std::string(1000, '1')),
              HasSubstr("never ends"));
  EXPECT_NE(header_error(std::string(2'000'000, '[')), "");
}

}  // namespace
}  // namespace mlx_flash
