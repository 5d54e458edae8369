// SPDX-License-Identifier: MIT
#include "io/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#endif

#include <algorithm>
#include <filesystem>
#include <random>

#include "base/log.h"
#include "io/testing/temp_file.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

constexpr uint64_t kBytes = 3 * 1000 * 1000 + 17;

class FileTest : public testing::TestWithParam<File::Mode> {};

void expect_reads(const File& file, uint64_t offset, uint64_t bytes) {
  std::vector<std::byte> got(bytes + 2, std::byte{0x55});
  const Status status = file.read(offset, {got.data() + 1, bytes});
  ASSERT_TRUE(status.ok()) << status.message();
  const auto want = TempFile::content(offset, bytes);
  EXPECT_TRUE(std::equal(want.begin(), want.end(), got.begin() + 1))
      << bytes << " at " << offset;
  EXPECT_EQ(got.front(), std::byte{0x55});
  EXPECT_EQ(got.back(), std::byte{0x55});
}

TEST_P(FileTest, ReadsAnyBytesIntoAnyMemory) {
  const TempFile temp(kBytes);
  auto file = File::open(temp.path(), GetParam());
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->size(), kBytes);
  std::mt19937_64 random(1);
  for (int i = 0; i < 100; ++i) {
    const uint64_t offset = random() % kBytes;
    const uint64_t bytes = random() % (kBytes - offset + 1);
    expect_reads(*file, offset, i % 2 == 0 ? bytes : bytes % 5000);
  }
  expect_reads(*file, 0, kBytes);
  expect_reads(*file, kBytes, 0);
  expect_reads(*file, kBytes - 1, 1);
  const uint64_t bounce = 256 << 10;  // around the bounce buffer's size
  for (uint64_t bytes = bounce - 1; bytes <= bounce + 1; ++bytes) {
    expect_reads(*file, 511, bytes);
    expect_reads(*file, 512, bytes);
  }
}

TEST_P(FileTest, ReadsPastTheEndAreErrorsWithPlace) {
  const TempFile temp(1000);
  auto file = File::open(temp.path(), GetParam());
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> out(10);
  const Status status = file->read(991, out);
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_THAT(status.message(), HasSubstr(temp.path()));
  EXPECT_THAT(status.message(), HasSubstr("991"));
  EXPECT_FALSE(file->read(UINT64_MAX - 4, out).ok());
}

TEST_P(FileTest, AFileThatIsCutOrWrittenWhileInUseIsAnError) {
  const TempFile temp(100'000);
  auto file = File::open(temp.path(), GetParam());
  ASSERT_TRUE(file.ok());
  std::vector<std::byte> out(1000);
  EXPECT_TRUE(file->read(0, out).ok());
  temp.scribble(5000);
  Status status = file->read(0, out);
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_THAT(status.message(), HasSubstr("changed while in use"));
  temp.truncate(50'000);
  status = file->read(60'000, out);
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_THAT(status.message(), HasSubstr("cut while in use"));
}

TEST_P(FileTest, AFileThatIsReplacedIsReadAsItWas) {
  const TempFile temp(10'000);
  auto file = File::open(temp.path(), GetParam());
  ASSERT_TRUE(file.ok());
  ::unlink(temp.path().c_str());
  const TempFile other(10);
  std::filesystem::copy_file(other.path(), temp.path());
  expect_reads(*file, 100, 9000);
}

TEST_P(FileTest, WhatIsNotARegularFileIsRefusedWithoutHanging) {
  const std::string fifo = "flash-test-" + std::to_string(::getpid()) + ".fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  const std::vector<std::string> paths = {
      fifo, ".", "/dev/null", "no/such/file", ""};
  for (const std::string& path : paths) {
    const auto file = File::open(path, GetParam());
    EXPECT_EQ(file.status().code(), StatusCode::kInvalidInput) << path;
    EXPECT_THAT(file.status().message(), HasSubstr(path));
  }
  ::unlink(fifo.c_str());
}

TEST_P(FileTest, EmptyFilesCanBeOpened) {
  const TempFile temp(0);
  auto file = File::open(temp.path(), GetParam());
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(file->size(), 0u);
}

TEST_P(FileTest, MovingKeepsTheDescriptorOpenOnce) {
  const TempFile temp(1000);
  File a = std::move(File::open(temp.path(), GetParam())).value();
  File b = std::move(a);
  expect_reads(b, 0, 1000);
  {
    File c = std::move(File::open(temp.path(), GetParam())).value();
    c = std::move(b);
    expect_reads(c, 1, 999);
    b = std::move(c);
  }
  expect_reads(b, 2, 998);
}

// Pages of the file in the page cache.
size_t cached_pages(const std::string& path, uint64_t bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  void* p = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  std::vector<unsigned char> resident(bytes / 4096 + 1);
  const bool ok = ::mincore(p, bytes, resident.data()) == 0;
  ::munmap(p, bytes);
  ::close(fd);
  size_t pages = 0;
  for (const unsigned char c : resident) pages += c & 1;
  return ok ? pages : SIZE_MAX;
}

TEST_P(FileTest, ReadingLeavesNothingInThePageCache) {
  const TempFile temp(kBytes);
  {
    const int fd = ::open(temp.path().c_str(), O_RDONLY);
    ASSERT_EQ(::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    ::close(fd);
  }
  if (cached_pages(temp.path(), kBytes) > 0) {
    GTEST_SKIP() << "this file system keeps its pages";
  }
  auto file = File::open(temp.path(), GetParam());
  ASSERT_TRUE(file.ok());
  expect_reads(*file, 5, kBytes - 5);
  expect_reads(*file, 100'001, 3);
  EXPECT_EQ(cached_pages(temp.path(), kBytes), 0u);
}

#if defined(__linux__)
constexpr int kNotHere = 77;

// In a process of its own: reads from a ramfs, which has no direct I/O, and
// counts what is said about it.
int read_without_direct_io() {
  const std::string folder = "flash-ramfs-" + std::to_string(::getpid());
  if (::unshare(CLONE_NEWNS) != 0) return kNotHere;
  (void)::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
  if (::mkdir(folder.c_str(), 0700) != 0) return 3;
  const bool mounted =
      ::mount("none", folder.c_str(), "ramfs", 0, nullptr) == 0;
  int outcome = kNotHere;
  if (mounted && ::chdir(folder.c_str()) == 0) {
    const TempFile temp(100'000);
    const int said = ::open("said", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ::dup2(said, STDERR_FILENO);
    set_log_level(LogLevel::kInfo);
    outcome = 0;
    for (int i = 0; i < 2; ++i) {
      auto file = File::open(temp.path(), File::Mode::kDirect);
      std::vector<std::byte> out(70'001);
      if (!file.ok() || file->direct() || file->alignment() != 1) outcome = 4;
      if (!file.ok() || !file->read(1001, out).ok()) outcome = 5;
      if (out != TempFile::content(1001, out.size())) outcome = 6;
    }
    std::string text(4096, '\0');
    text.resize(static_cast<size_t>(::pread(said, text.data(), 4096, 0)));
    const size_t first = text.find("no direct I/O");
    if (first == text.npos) outcome = 7;
    if (text.find("no direct I/O", first + 1) != text.npos) outcome = 8;
    (void)::chdir("..");
  }
  if (mounted) (void)::umount2(folder.c_str(), MNT_DETACH);
  (void)::rmdir(folder.c_str());
  return outcome;
}

TEST(File, WithoutDirectIoItReadsThroughThePageCacheAndSaysSoOnce) {
  bool here = true;
  const auto fine = [&](int status) {
    here = WIFEXITED(status) && WEXITSTATUS(status) != kNotHere;
    return WIFEXITED(status) &&
           (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == kNotHere);
  };
  EXPECT_EXIT(std::_Exit(read_without_direct_io()), fine, "");
  if (!here) GTEST_SKIP() << "may not mount a file system without direct I/O";
}
#endif

INSTANTIATE_TEST_SUITE_P(Modes,
                         FileTest,
                         testing::Values(File::Mode::kBuffered,
                                         File::Mode::kDirect),
                         [](const auto& test) {
                           return test.param == File::Mode::kDirect
                                      ? "Direct"
                                      : "Buffered";
                         });

}  // namespace
}  // namespace mlx_flash
