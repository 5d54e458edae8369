// SPDX-License-Identifier: MIT
#include "base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace mlx_flash {
namespace {

using ::testing::HasSubstr;

std::string error_of(std::string_view text) {
  const auto json = parse_json(text);
  return json.ok() ? "" : json.status().message();
}

TEST(ParseJson, KeepsTheOrderOfKeysAndTheLastOfEqualOnes) {
  const auto json = parse_json(R"({"z": 1, "a": [true, null, "x"], "z": 2.5})");
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(json->dump(), R"({"z":2.5,"a":[true,null,"x"]})");
}

TEST(ParseJson, TakesScalarsAndNestedValues) {
  EXPECT_EQ(*parse_json("3"), Json(3));
  EXPECT_EQ(*parse_json("-3"), Json(-3));
  EXPECT_EQ(parse_json(R"({"a":{"b":[[{"c":[]}]]}})")->dump(),
            R"({"a":{"b":[[{"c":[]}]]}})");
  EXPECT_EQ((*parse_json(R"("\u00e9\ud83d\ude00")")).get<std::string>(),
            "\xc3\xa9\xf0\x9f\x98\x80");
}

TEST(ParseJson, NamesLineAndColumn) {
  EXPECT_THAT(error_of("{\n  \"a\": 1,\n  \"b\": nope\n}"),
              HasSubstr("line 3, column"));
  EXPECT_THAT(error_of(""), HasSubstr("line 1, column 1"));
}

TEST(ParseJson, RefusesWhatIsNotJson) {
  for (const char* text : {"{",
                           "{\"a\":1,}",
                           "[1 2]",
                           "{'a':1}",
                           "[1]]",
                           "nul",
                           "\"\xff\"",
                           "\"a\nb\"",
                           "\"\\ud800\"",
                           "01"}) {
    EXPECT_NE(error_of(text), "") << text;
  }
}

TEST(ParseJson, RefusesNumbersThatAreNotFinite) {
  for (const char* text :
       {"NaN", "Infinity", "-Infinity", "1e999", "[-1e400]", "{\"a\":NaN}"}) {
    EXPECT_THAT(error_of(text), HasSubstr("line 1")) << text;
  }
}

TEST(ParseJson, LimitsDepthTo256) {
  EXPECT_EQ(error_of(std::string(256, '[') + std::string(256, ']')), "");
  EXPECT_THAT(error_of(std::string(257, '[') + std::string(257, ']')),
              HasSubstr("nested deeper than 256"));
  EXPECT_THAT(error_of(std::string(5'000'000, '[')), HasSubstr("column 257"));
}

TEST(ParseJson, TakesManyKeysInLinearTime) {
  std::string text = "{\"k\":0";
  for (int i = 0; i < 100'000; ++i) {
    text += ",\"key" + std::to_string(i) + "\":1";
  }
  text += "}";
  const auto begin = std::chrono::steady_clock::now();
  ASSERT_TRUE(parse_json(text).ok());
  // Looking each key up among the others takes a minute.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(ReadJsonFile, NamesTheFileAndHoldsTheLimit) {
  const std::string path = std::filesystem::temp_directory_path() /
                           ("json_test_" + std::to_string(::getpid()));
  std::ofstream(path) << "{\"a\": x}";
  EXPECT_THAT(read_json_file(path, 100).status().message(), HasSubstr(path));
  std::ofstream(path) << "[1,2,3]";
  EXPECT_TRUE(read_json_file(path, 7).ok());
  EXPECT_THAT(read_json_file(path, 6).status().message(), HasSubstr("larger"));
  std::filesystem::remove(path);
  EXPECT_THAT(read_json_file(path, 6).status().message(), HasSubstr("open"));
  EXPECT_FALSE(read_json_file("/", 100).ok());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(read_json_file(path, 100).status().message(),
              HasSubstr("not a regular file"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace mlx_flash
