// SPDX-License-Identifier: MIT
#include "hub/names.h"

#include <gtest/gtest.h>

#include <string>

namespace mlx_flash::hub {
namespace {

TEST(ParseRepo, TakesRevisionAndFile) {
  const auto repo = parse_repo("org/Name-1.5_x@refs/pr/1:dir/f-Q4_K_M.gguf");
  ASSERT_TRUE(repo.ok());
  EXPECT_EQ(repo->id, "org/Name-1.5_x");
  EXPECT_EQ(repo->revision, "refs/pr/1");
  EXPECT_TRUE(repo->revision_given);
  EXPECT_EQ(repo->file, "dir/f-Q4_K_M.gguf");
  const auto plain = parse_repo("gpt2");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->revision, "main");
  EXPECT_FALSE(plain->revision_given);
}

TEST(ParseRepo, RefusesWhatWouldLeadElsewhere) {
  for (const char* text :
       {"",         "/",      "a/",       "/a",     "a/b/c",   "../a",
        "a/..",     ".a/b",   "a/b.",     "a--b/c", "a/b.git", "a b/c",
        "a/b\n",    "a/b@",   "a/b@../c", "a/b@/c", "a/b@x y", "a/b:",
        "a/b:../c", "a/b:/c", "a\\b/c"}) {
    EXPECT_FALSE(parse_repo(text).ok()) << text;
  }
  EXPECT_FALSE(parse_repo(std::string("a/b\0c", 5)).ok());
  EXPECT_FALSE(parse_repo(std::string(97, 'a') + "/b").ok());
}

TEST(ParseRepo, TwoRevisionsMustNotContradict) {
  EXPECT_TRUE(parse_repo("a/b@v1", "v1").ok());
  EXPECT_FALSE(parse_repo("a/b@v1", "v2").ok());
  EXPECT_EQ(parse_repo("a/b", "v2")->revision, "v2");
}

TEST(LooksLikeRepo, IsOneSlash) {
  EXPECT_TRUE(looks_like_repo("org/name"));
  EXPECT_FALSE(looks_like_repo("name"));
  EXPECT_FALSE(looks_like_repo("./name"));
  EXPECT_FALSE(looks_like_repo("/org/name"));
  EXPECT_FALSE(looks_like_repo("a/b/c"));
  EXPECT_FALSE(looks_like_repo("~/name"));
}

TEST(CheckFileName, OnlyDownwards) {
  for (const char* name : {"a", "a.json", "a/b/c.gguf", "..a", "a..b/c", "ü"}) {
    EXPECT_TRUE(check_file_name(name).ok()) << name;
  }
  for (const char* name : {"",
                           ".",
                           "..",
                           "/a",
                           "a/",
                           "a//b",
                           "a/./b",
                           "a/../b",
                           "../a",
                           "a/..",
                           "a\\b",
                           "C:x",
                           "a\nb",
                           "a\x7f"}) {
    EXPECT_FALSE(check_file_name(name).ok()) << name;
  }
  EXPECT_FALSE(check_file_name(std::string("a\0b", 3)).ok());
  EXPECT_FALSE(check_file_name(std::string(201, 'a')).ok());
}

TEST(Etags, AreFileNamesOrNothing) {
  EXPECT_EQ(normal_etag("\"abc\""), "abc");
  EXPECT_EQ(normal_etag("W/\"abc-1\""), "abc-1");
  for (const char* header :
       {"", "\"\"", "\"../a\"", "\"a/b\"", "\".a\"", "\"a b\"", "\"a\\b\""}) {
    EXPECT_EQ(normal_etag(header), "") << header;
  }
  EXPECT_EQ(normal_etag(std::string(129, 'a')), "");
  EXPECT_TRUE(is_sha256(std::string(64, 'a')));
  EXPECT_FALSE(is_sha256(std::string(64, 'A')));
  EXPECT_FALSE(is_sha256(std::string(63, 'a')));
  EXPECT_TRUE(is_git_oid(std::string(40, '0')));
}

TEST(Folders, GoBothWays) {
  EXPECT_EQ(repo_folder_name("org/name"), "models--org--name");
  EXPECT_EQ(repo_id_of_folder("models--org--name"), "org/name");
  EXPECT_EQ(repo_id_of_folder("models--gpt2"), "gpt2");
  for (const char* folder : {"datasets--a--b",
                             "models--",
                             "models--..--a",
                             "models--a--b--c",
                             "models--a/b",
                             "x"}) {
    EXPECT_EQ(repo_id_of_folder(folder), "") << folder;
  }
}

TEST(UrlPath, EscapesAllButUnreserved) {
  EXPECT_EQ(url_path("a-b_c.d~e/f"), "a-b_c.d~e/f");
  EXPECT_EQ(url_path("a b?#%\xc3\xbc"), "a%20b%3F%23%25%C3%BC");
}

TEST(GlobMatches, AsPythonsFnmatch) {
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_TRUE(glob_matches("*.json", "a/b.json"));
  EXPECT_TRUE(glob_matches("a?c", "a/c"));
  EXPECT_TRUE(glob_matches("[a-c]x[!0-9]", "bxy"));
  EXPECT_TRUE(glob_matches("[]]", "]"));
  EXPECT_TRUE(glob_matches("[", "["));
  EXPECT_TRUE(glob_matches("a*b*c", "aXbXbXc"));
  EXPECT_FALSE(glob_matches("*.json", "a.jsonl"));
  EXPECT_FALSE(glob_matches("[!a]", "a"));
  EXPECT_FALSE(glob_matches("", "a"));
  EXPECT_FALSE(glob_matches("[a", "a"));
}

TEST(GlobMatches, StaysQuickOnPatternsMadeToBeSlow) {
  std::string pattern;
  for (int i = 0; i < 200; ++i) pattern += "*a";
  EXPECT_FALSE(glob_matches(pattern + "b", std::string(1000, 'a')));
}

}  // namespace
}  // namespace mlx_flash::hub
