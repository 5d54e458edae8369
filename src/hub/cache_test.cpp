// SPDX-License-Identifier: MIT
#include "hub/cache.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "base/read_file.h"
#include "hub/api.h"
#include "hub/inventory.h"
#include "hub/local.h"

namespace mlx_flash::hub {
namespace {

namespace fs = std::filesystem;

const std::string kCommit(40, 'a');
const std::string kOther(40, 'b');

class CacheTest : public ::testing::Test {
 protected:
  CacheTest() {
    std::string path = (fs::temp_directory_path() / "cache-XXXXXX").string();
    root_ = ::mkdtemp(path.data());
  }
  ~CacheTest() override { fs::remove_all(root_); }

  // A file of a snapshot with its blob.
  void store(const RepoCache& cache,
             const std::string& commit,
             const std::string& name,
             const std::string& etag,
             const std::string& text = "x") {
    ASSERT_TRUE(cache.prepare().ok());
    std::ofstream(cache.blob(etag)) << text;
    ASSERT_TRUE(cache.point(commit, name, etag, true).ok());
  }

  fs::path root_;
};

TEST_F(CacheTest, LinksAreRelativeHoweverDeep) {
  const RepoCache cache(root_, "o/n", true);
  store(cache, kCommit, "a/b/c.json", "e1");
  const std::string link = cache.pointer(kCommit, "a/b/c.json");
  EXPECT_EQ(fs::read_symlink(link), "../../../../blobs/e1");
  EXPECT_EQ(*read_whole_file(link, 10), "x");
  EXPECT_TRUE(cache.has(kCommit, "a/b/c.json", 1));
  EXPECT_FALSE(cache.has(kCommit, "a/b/c.json", 2));
}

TEST_F(CacheTest, WithoutLinksFilesTakeTheirPlace) {
  const RepoCache cache(root_, "o/n", false);
  store(cache, kCommit, "c.json", "e1");
  EXPECT_TRUE(fs::is_regular_file(
      fs::symlink_status(cache.pointer(kCommit, "c.json"))));
  EXPECT_FALSE(fs::exists(cache.blob("e1")));
}

TEST_F(CacheTest, RefsThatAreNoCommitsAreNotFollowed) {
  const RepoCache cache(root_, "o/n", true);
  ASSERT_TRUE(cache.prepare().ok());
  ASSERT_TRUE(cache.set_ref("refs/pr/1", kCommit).ok());
  EXPECT_EQ(cache.commit_of("refs/pr/1"), kCommit);
  EXPECT_EQ(cache.commit_of("main"), "");
  for (const char* text : {"", "../../x", "a b", "/etc"}) {
    std::ofstream(cache.folder() + "/refs/main") << text;
    EXPECT_EQ(cache.commit_of("main"), "") << text;
  }
}

TEST_F(CacheTest, OneLockAtATime) {
  const std::string path = root_ / "x.lock";
  auto first = FileLock::try_lock(path);
  ASSERT_TRUE(first.ok() && first->held());
  EXPECT_FALSE(FileLock::try_lock(path)->held());
  { const FileLock moved = std::move(*first); }
  EXPECT_TRUE(FileLock::try_lock(path)->held());
}

TEST_F(CacheTest, AnIncompleteModelIsNotFound) {
  const RepoCache cache(root_, "o/n", true);
  RepoRef ref;
  ref.id = "o/n";
  const auto found = [&] {
    const auto local = find_local(cache, ref);
    return local.ok() && local->has_value();
  };
  EXPECT_FALSE(found());
  store(cache, kCommit, "config.json", "e1");
  ASSERT_TRUE(cache.set_ref("main", kCommit).ok());
  store(cache, kCommit, "tokenizer.json", "e2");
  store(cache,
        kCommit,
        kIndexFile,
        "e3",
        R"({"weight_map": {"a": "model-1.safetensors",
                           "b": "model-2.safetensors"}})");
  store(cache, kCommit, "model-1.safetensors", "e4");
  EXPECT_FALSE(found());
  store(cache, kCommit, "model-2.safetensors", "e5");
  EXPECT_TRUE(found());
  fs::remove(cache.blob("e5"));  // the link leads nowhere
  EXPECT_FALSE(found());
}

TEST_F(CacheTest, RemovalKeepsSharedBlobsAndStaysInside) {
  const RepoCache cache(root_, "o/n", true);
  store(cache, kCommit, "config.json", "e1");
  store(cache, kCommit, "m.gguf", "e2", "0123");
  store(cache, kOther, "config.json", "e1");
  const fs::path out = root_ / "precious";
  std::ofstream(out) << "p";
  fs::create_symlink(out, cache.pointer(kCommit, "out"));
  Settings settings;
  settings.cache = root_;
  RepoRef ref;
  ref.id = "o/n";
  ref.revision = kCommit;
  const auto removal = plan_removal(settings, ref, false);
  ASSERT_TRUE(removal.ok()) << removal.status().message();
  EXPECT_EQ(removal->bytes, 4U);
  ASSERT_TRUE(remove(*removal).ok());
  EXPECT_TRUE(fs::exists(out));
  EXPECT_FALSE(fs::exists(cache.snapshot(kCommit)));
  EXPECT_TRUE(cache.has(kOther, "config.json", 1));
  EXPECT_FALSE(fs::exists(cache.blob("e2")));
}

TEST(Ranges, AreReadOrRefused) {
  EXPECT_EQ(total_of_range("bytes 0-99/1234"), 1234U);
  for (const char* text : {"",
                           "bytes 0-99/*",
                           "items 0-1/2",
                           "bytes 0-99/",
                           "bytes 0-99/-1",
                           "bytes 0-99/99999999999999999999"}) {
    EXPECT_EQ(total_of_range(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace mlx_flash::hub
