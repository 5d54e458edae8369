// SPDX-License-Identifier: MIT
#include "cli/text_input.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace mlx_flash {
namespace {

using testing::HasSubstr;

std::string file_with(const char* name, const std::string& text) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

TEST(TextInput, Utf8ErrorsNameTheOffset) {
  EXPECT_TRUE(check_utf8("", "x").ok());
  EXPECT_TRUE(check_utf8("caf\xc3\xa9 \xf0\x9f\x98\x80", "x").ok());
  const Status status = check_utf8("ab\xff", "--prompt");
  EXPECT_EQ(status.code(), StatusCode::kInvalidInput);
  EXPECT_THAT(status.message(), HasSubstr("--prompt: byte 0xff at offset 2"));
}

TEST(TextInput, OverlongFormsSurrogatesAndCutCharactersAreNotUtf8) {
  for (const char* bad : {"\xc0\xaf",
                          "\xe0\x80\xaf",
                          "\xed\xa0\x80",
                          "\xf4\x90\x80\x80",
                          "\xc3",
                          "\xe2\x82",
                          "\x80"}) {
    EXPECT_FALSE(check_utf8(bad, "x").ok());
  }
}

TEST(TextInput, AFilesPromptIsTakenExactly) {
  PromptOptions options;
  options.file = file_with("prompt.txt", " two lines\n\n");
  const auto prompt = read_prompt(options);
  ASSERT_TRUE(prompt.ok());
  EXPECT_EQ(prompt->text, " two lines\n\n");
  EXPECT_FALSE(prompt->from_ids);
}

TEST(TextInput, EmptyMissingAndDoubledPromptsAreRefused) {
  PromptOptions empty;
  empty.text = "";
  EXPECT_THAT(read_prompt(empty).status().message(), HasSubstr("empty"));

  PromptOptions empty_file;
  empty_file.file = file_with("empty.txt", "");
  EXPECT_THAT(read_prompt(empty_file).status().message(), HasSubstr("empty"));

  PromptOptions missing;
  missing.file = "/no/such/prompt";
  EXPECT_THAT(read_prompt(missing).status().message(),
              HasSubstr("/no/such/prompt"));

  PromptOptions folder;
  folder.file = testing::TempDir();
  EXPECT_FALSE(read_prompt(folder).ok());

  PromptOptions doubled;
  doubled.text = "a";
  doubled.ids = "1";
  EXPECT_THAT(read_prompt(doubled).status().message(),
              HasSubstr("more than one"));

  PromptOptions no_ids;
  no_ids.ids = "[]";
  EXPECT_FALSE(read_prompt(no_ids).ok());
}

TEST(TextInput, IdsAreAPromptOfTheirOwn) {
  PromptOptions options;
  options.ids = "5, 6";
  const auto prompt = read_prompt(options);
  ASSERT_TRUE(prompt.ok());
  EXPECT_TRUE(prompt->from_ids);
  EXPECT_THAT(prompt->ids, testing::ElementsAre(5, 6));
}

TEST(TextInput, OnlyOneTextIsScored) {
  TextOptions both;
  both.text = "a";
  both.file = "b";
  EXPECT_FALSE(read_plain_text(both).ok());
  TextOptions text;
  text.text = "a\n";
  EXPECT_EQ(read_plain_text(text).value(), "a\n");
}

}  // namespace
}  // namespace mlx_flash
