// SPDX-License-Identifier: MIT
#include "cli/npy.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace mlx_flash {
namespace {

std::string temporary(const char* name) {
  return testing::TempDir() + "/" + name;
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  return all.str();
}

TEST(Npy, AFinishedFileHasAnAlignedHeaderAndTheRows) {
  const std::string path = temporary("finished.npy");
  auto writer = NpyWriter::create(path, 2, 3);
  ASSERT_TRUE(writer.ok());
  const std::array<float, 6> values{1, 2, 3, 4, 5, 6.5f};
  ASSERT_TRUE(writer.value()->write_row({values.data(), 3}).ok());
  ASSERT_TRUE(writer.value()->write_row({values.data() + 3, 3}).ok());
  ASSERT_TRUE(writer.value()->finish().ok());

  const std::string file = contents(path);
  ASSERT_EQ(file.substr(0, 8), std::string("\x93NUMPY\x01\0", 8));
  const size_t header = static_cast<unsigned char>(file[8]) +
                        256u * static_cast<unsigned char>(file[9]);
  EXPECT_EQ((10 + header) % 64, 0u);
  EXPECT_NE(file.find("'shape': (2, 3)"), file.npos);
  EXPECT_EQ(file[10 + header - 1], '\n');
  ASSERT_EQ(file.size(), 10 + header + sizeof values);
  EXPECT_EQ(
      std::memcmp(file.data() + 10 + header, values.data(), sizeof values), 0);
}

TEST(Npy, AnUnfinishedFileDoesNotStay) {
  const std::string path = temporary("unfinished.npy");
  {
    auto writer = NpyWriter::create(path, 2, 1);
    ASSERT_TRUE(writer.ok());
    const float value = 1;
    ASSERT_TRUE(writer.value()->write_row({&value, 1}).ok());
    EXPECT_FALSE(writer.value()->finish().ok());
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(Npy, AFullDiskIsAnErrorAndADeviceIsNotRemoved) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  {
    auto writer = NpyWriter::create("/dev/full", 1, 1);
    ASSERT_TRUE(writer.ok());
    const float value = 1;
    ASSERT_TRUE(writer.value()->write_row({&value, 1}).ok());  // buffered
    const Status status = writer.value()->finish();
    EXPECT_EQ(status.code(), StatusCode::kIoError);
    EXPECT_NE(status.message().find("/dev/full"), std::string::npos);
  }
  EXPECT_TRUE(std::filesystem::exists("/dev/full"));
}

TEST(Npy, APathThatCannotBeCreatedIsInput) {
  EXPECT_EQ(NpyWriter::create("/no/such/folder/x.npy", 1, 1).status().code(),
            StatusCode::kInvalidInput);
}

}  // namespace
}  // namespace mlx_flash
