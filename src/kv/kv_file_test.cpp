// SPDX-License-Identifier: MIT
#include "kv/kv_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "io/aligned_buffer.h"

namespace mlx_flash {
namespace {

constexpr size_t kPayload = 9000;

class KvFileTest : public ::testing::Test {
 protected:
  KvFileTest() {
    // Not in memory, where a temporary folder may be.
    std::string name =
        (std::filesystem::current_path() / "kv-file-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~KvFileTest() override { std::filesystem::remove_all(folder_); }

  Result<std::unique_ptr<KvFile>> make(KvFile::WriteFn write = nullptr) {
    return KvFile::create({.folder = folder_,
                           .payload_bytes = kPayload,
                           .write = std::move(write)});
  }

  size_t entries() const {
    size_t n = 0;
    for ([[maybe_unused]] const auto& e :
         std::filesystem::directory_iterator(folder_)) {
      ++n;
    }
    return n;
  }

  static void fill(KvFile& file, uint32_t seed) {
    for (size_t i = 0; i < kPayload; ++i) {
      file.payload()[i] = static_cast<std::byte>(seed * 31 + i * i * 7);
    }
  }

  static AlignedBuffer read(const KvFile& file, const KvPlace& place) {
    AlignedBuffer record(file.record_bytes(), 4096);
    EXPECT_EQ(::pread(file.file().fd(),
                      record.data(),
                      file.record_bytes(),
                      static_cast<off_t>(place.slot * file.record_bytes())),
              static_cast<ssize_t>(file.record_bytes()));
    return record;
  }

  int folder_fd() const {
    return ::open(folder_.c_str(), O_RDONLY | O_DIRECTORY);
  }

  std::string folder_;
};

TEST_F(KvFileTest, WhatWasWrittenComesBackAndTheFolderStaysEmpty) {
  auto file = make();
  ASSERT_TRUE(file.ok()) << file.status().message();
  EXPECT_EQ(entries(), 0u);
  std::vector<KvPlace> places;
  for (uint32_t i = 0; i < 20; ++i) {
    fill(**file, i);
    const auto place = (*file)->put(i % 3, i);
    ASSERT_TRUE(place.ok());
    places.push_back(*place);
    if (i == 10) (*file)->give(places[4]);
  }
  EXPECT_EQ(places[11].slot, places[4].slot);
  EXPECT_NE(places[11].generation, places[4].generation);
  EXPECT_EQ((*file)->bytes_used(), 19 * (*file)->record_bytes());
  for (uint32_t i = 0; i < 20; ++i) {
    const AlignedBuffer record = read(**file, places[i]);
    const auto payload = (*file)->open_record(record.data(), places[i]);
    EXPECT_EQ(payload.ok(), i != 4) << i;
    if (i == 4) continue;
    fill(**file, i);
    EXPECT_EQ(std::memcmp(*payload, (*file)->payload(), kPayload), 0);
  }
}

TEST_F(KvFileTest, ATornMovedOrChangedRecordIsNeverGood) {
  auto file = make();
  ASSERT_TRUE(file.ok());
  fill(**file, 1);
  const KvPlace place = (*file)->put(2, 7).value();
  const AlignedBuffer whole = read(**file, place);
  const size_t used = 64 + kPayload;
  ASSERT_TRUE((*file)->open_record(whole.data(), place).ok());
  AlignedBuffer broken(whole.size(), 4096);
  for (size_t cut = 0; cut < used; cut += cut < 64 ? 1 : 97) {
    std::memset(broken.data(), 0, broken.size());
    std::memcpy(broken.data(), whole.data(), cut);
    EXPECT_FALSE((*file)->open_record(broken.data(), place).ok()) << cut;
  }
  for (size_t bit = 0; bit < used * 8; bit += bit < 512 ? 1 : 41) {
    std::memcpy(broken.data(), whole.data(), whole.size());
    broken.data()[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    EXPECT_FALSE((*file)->open_record(broken.data(), place).ok()) << bit;
  }
  for (KvPlace other : {KvPlace{1, 1, 2, 7},
                        KvPlace{0, 2, 2, 7},
                        KvPlace{0, 1, 1, 7},
                        KvPlace{0, 1, 2, 8}}) {
    EXPECT_FALSE((*file)->open_record(whole.data(), other).ok());
  }
}

TEST_F(KvFileTest, ShortWritesAreContinuedAndErrorsSaid) {
  int calls = 0;
  auto file = make([&](int fd, const void* p, size_t n, off_t at) -> ssize_t {
    if (++calls == 1) {
      errno = EINTR;
      return -1;
    }
    return ::pwrite(fd, p, calls == 2 ? std::min<size_t>(n, 4096) : n, at);
  });
  ASSERT_TRUE(file.ok());
  fill(**file, 3);
  const auto place = (*file)->put(0, 0);
  ASSERT_TRUE(place.ok()) << place.status().message();
  EXPECT_EQ(calls, 3);
  const AlignedBuffer record = read(**file, *place);
  EXPECT_TRUE((*file)->open_record(record.data(), *place).ok());
  for (const auto& [error, code] : {std::pair{ENOSPC, StatusCode::kExhausted},
                                    {EDQUOT, StatusCode::kExhausted},
                                    {EIO, StatusCode::kIoError}}) {
    auto failing = make([e = error](int, const void*, size_t, off_t) {
      errno = e;
      return ssize_t{-1};
    });
    ASSERT_TRUE(failing.ok());
    EXPECT_EQ((*failing)->put(0, 0).status().code(), code);
    EXPECT_EQ((*failing)->bytes_used(), 0u);
  }
}

TEST_F(KvFileTest, OnlyFoldersOfTheDeadAreRemoved) {
  const std::string dead = folder_ + "/mlx-flash-kv-1-a";
  const std::string alive = folder_ + "/mlx-flash-kv-1-b";
  const std::string mine = folder_ + "/mine";
  for (const std::string& path : {dead, alive, mine}) {
    std::filesystem::create_directory(path);
    std::ofstream(path + "/blocks") << "x";
  }
  std::filesystem::create_directory_symlink(mine,
                                            folder_ + "/mlx-flash-kv-1-c");
  const int lock = ::open(alive.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  const int fd = folder_fd();
  EXPECT_EQ(KvFile::remove_leftovers(fd), 1u);
  EXPECT_FALSE(std::filesystem::exists(dead));
  EXPECT_TRUE(std::filesystem::exists(alive + "/blocks"));
  EXPECT_TRUE(std::filesystem::exists(mine + "/blocks"));
  ::close(lock);
  EXPECT_EQ(KvFile::remove_leftovers(fd), 1u);
  EXPECT_FALSE(std::filesystem::exists(alive));
  ::close(fd);
}

// What a child does until it is killed: files made, filled, given up.
[[noreturn]] void write_forever(const std::string& folder) {
  for (;;) {
    auto file = KvFile::create({.folder = folder, .payload_bytes = kPayload});
    if (!file.ok()) ::_exit(3);
    for (uint32_t i = 0; i < 20; ++i) {
      if (!(*file)->put(0, i).ok()) ::_exit(4);
    }
  }
}

TEST_F(KvFileTest, KilledAtAnyPointNothingStays) {
  const unsigned seed = 20;
  SCOPED_TRACE(seed);
  std::minstd_rand random(seed);
  size_t found = 0;
  for (int round = 0; round < 200; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) write_forever(folder_);
    ::usleep(500 + static_cast<useconds_t>(random() % 12000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    found += entries();
    const auto next = make();
    ASSERT_TRUE(next.ok()) << next.status().message();
    EXPECT_EQ(entries(), 0u) << round;
  }
  RecordProperty("left by the killed", static_cast<int>(found));
}

// A user without rights, in the test's folder; its exit code.
template <class Fn>
int as_a_stranger(const std::string& folder, const Fn& fn) {
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr uid_t kNobody = 65534;
    if (::chdir(folder.c_str()) != 0) ::_exit(100);
    if (::geteuid() == 0 && ::setuid(kNobody) != 0) ::_exit(101);
    ::_exit(fn());
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 102;
}

TEST_F(KvFileTest, AFolderThatIsNotOursToWriteToIsRefused) {
  const std::string readable = folder_ + "/readable";
  const std::string closed = folder_ + "/closed";
  const std::string inside = closed + "/inside";
  std::filesystem::create_directory(readable);
  std::filesystem::create_directory(closed);
  std::filesystem::create_directory(inside);
  ASSERT_EQ(::chmod(folder_.c_str(), 0755), 0);
  ASSERT_EQ(::chmod(readable.c_str(), 0555), 0);
  ASSERT_EQ(::chmod(inside.c_str(), 0500), 0);
  ASSERT_EQ(::chmod(closed.c_str(), 0), 0);
  for (const char* name : {"readable",
                           "closed",
                           "closed/inside",
                           "readable/made",
                           "/proc",
                           "/proc/self/fdinfo"}) {
    EXPECT_EQ(as_a_stranger(folder_,
                            [&] {
                              const auto file = KvFile::create(
                                  {.folder = name, .payload_bytes = kPayload});
                              if (file.ok()) return 1;
                              const Status& why = file.status();
                              if (why.code() != StatusCode::kInvalidInput) {
                                return 2;
                              }
                              // It names the folder, and the reason.
                              const std::string& text = why.message();
                              const bool named =
                                  text.find("--kv-dir") != text.npos &&
                                  text.find(name) != text.npos;
                              return named && text.size() > 20 ? 0 : 3;
                            }),
              0)
        << name;
  }
  // The same user and one that will do: it is the folders that are refused.
  const std::string open = folder_ + "/open";
  std::filesystem::create_directory(open);
  ASSERT_EQ(::chmod(open.c_str(), 01777), 0);
  EXPECT_EQ(as_a_stranger(folder_,
                          [&] {
                            return KvFile::create({.folder = "open",
                                                   .payload_bytes = kPayload})
                                           .ok()
                                       ? 0
                                       : 1;
                          }),
            0);
  ASSERT_EQ(::chmod(closed.c_str(), 0700), 0);
  ASSERT_EQ(::chmod(inside.c_str(), 0700), 0);
  EXPECT_TRUE(std::filesystem::is_empty(readable));
  EXPECT_TRUE(std::filesystem::is_empty(inside));
  EXPECT_TRUE(std::filesystem::is_empty(open));
}

TEST_F(KvFileTest, TwoProcessesShareAFolder) {
  std::vector<pid_t> children;
  for (int c = 0; c < 2; ++c) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (uint32_t i = 0; i < 100; ++i) {
        auto file = make();
        if (!file.ok()) ::_exit(3);
        fill(**file, i);
        const auto place = (*file)->put(1, i);
        if (!place.ok()) ::_exit(4);
        const AlignedBuffer record = read(**file, *place);
        if (!(*file)->open_record(record.data(), *place).ok()) ::_exit(5);
      }
      ::_exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  EXPECT_EQ(entries(), 0u);
}

}  // namespace
}  // namespace mlx_flash
