// SPDX-License-Identifier: MIT
#include "hub/partial_file.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "base/read_file.h"

namespace mlx_flash::hub {
namespace {

namespace fs = std::filesystem;

class PartialFileTest : public ::testing::Test {
 protected:
  PartialFileTest() {
    std::string path = (fs::temp_directory_path() / "partial-XXXXXX").string();
    folder_ = ::mkdtemp(path.data());
    blob_ = folder_ / "blob";
  }
  ~PartialFileTest() override { fs::remove_all(folder_); }

  fs::path folder_;
  fs::path blob_;
  const std::atomic<bool> go_{false};
};

// Random bytes in random pieces, the process "killed" at random: what is
// published is what was written.
TEST_F(PartialFileTest, EndsRightWhereverItIsInterrupted) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    std::string content(random() % 5000, '\0');
    for (char& c : content) c = static_cast<char>(random());
    bool done = false;
    while (!done) {
      PartialFile file;
      ASSERT_TRUE(file.open(blob_, content.size(), 1 + random() % 700).ok());
      for (int steps = static_cast<int>(random() % 40); steps > 0; --steps) {
        const auto index = file.take();
        if (!index) break;
        const Piece piece = file.piece(*index);
        const uint64_t at = piece.begin + piece.done;
        const uint64_t bytes = 1 + random() % (piece.end - at);
        ASSERT_TRUE(file.write(*index, {content.data() + at, bytes}).ok());
        file.give_back(*index);
      }
      done = file.complete();
      if (done) {
        ASSERT_TRUE(file.publish().ok());
      }
    }
    EXPECT_EQ(*read_whole_file(blob_, 1 << 20), content) << seed;
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
    fs::remove(blob_);
  }
}

TEST_F(PartialFileTest, CountsThatCannotBeAreForgotten) {
  const std::string state = blob_.string() + ".mlx-flash-state.incomplete";
  for (const size_t word : {0U, 1U, 3U}) {
    {
      PartialFile file;
      ASSERT_TRUE(file.open(blob_, 100, 10).ok());
      const size_t piece = *file.take();
      ASSERT_TRUE(file.write(piece, {"0123456789", 10}).ok());
      EXPECT_EQ(file.done_bytes(), 10U);
    }
    std::fstream out(state, std::ios::in | std::ios::out | std::ios::binary);
    const uint64_t wrong = ~uint64_t{0} >> 1;
    out.seekp(static_cast<std::streamoff>(word * 8));
    out.write(reinterpret_cast<const char*>(&wrong), sizeof(wrong));
    out.close();
    PartialFile file;
    ASSERT_TRUE(file.open(blob_, 100, 10).ok());
    EXPECT_EQ(file.done_bytes(), 0U) << word;
    file.discard();
  }
}

TEST_F(PartialFileTest, AnotherSizeBeginsAnew) {
  {
    PartialFile file;
    ASSERT_TRUE(file.open(blob_, 10, 10).ok());
    ASSERT_TRUE(file.write(*file.take(), {"01234", 5}).ok());
  }
  PartialFile file;
  ASSERT_TRUE(file.open(blob_, 11, 10).ok());
  EXPECT_EQ(file.done_bytes(), 0U);
}

TEST_F(PartialFileTest, DigestsAreSha256AndGits) {
  PartialFile file;
  ASSERT_TRUE(file.open(blob_, 6, 6).ok());
  ASSERT_TRUE(file.write(*file.take(), {"hello\n", 6}).ok());
  // From sha256sum and git hash-object.
  EXPECT_EQ(*file.digest(false, go_),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
  EXPECT_EQ(*file.digest(true, go_),
            "ce013625030ba8dba906f756967f9e9ca394464a");
  const std::atomic<bool> stop{true};
  EXPECT_EQ(file.digest(true, stop).status().code(), StatusCode::kCancelled);
}

TEST_F(PartialFileTest, NothingIsAFileToo) {
  PartialFile file;
  ASSERT_TRUE(file.open(blob_, 0, 10).ok());
  EXPECT_TRUE(file.complete());
  EXPECT_FALSE(file.take());
  EXPECT_EQ(*file.digest(true, go_),
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
  ASSERT_TRUE(file.publish().ok());
  EXPECT_TRUE(fs::exists(blob_));
}

TEST_F(PartialFileTest, ALinkInItsPlaceIsNotFollowed) {
  const fs::path precious = folder_ / "precious";
  std::ofstream(precious) << "x";
  fs::create_symlink(precious, blob_.string() + ".mlx-flash.incomplete");
  PartialFile file;
  EXPECT_FALSE(file.open(blob_, 10, 10).ok());
  EXPECT_EQ(*read_whole_file(precious, 10), "x");
}

}  // namespace
}  // namespace mlx_flash::hub
