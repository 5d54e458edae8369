// SPDX-License-Identifier: MIT
#include "kv/session_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

namespace mlx_flash {
namespace {

constexpr size_t kPayload = 9000;
constexpr uint32_t kRecords = 12;

class SessionFileTest : public ::testing::Test {
 protected:
  SessionFileTest() {
    std::string name =
        (std::filesystem::current_path() / "session-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    path_ = folder_ + "/talk";
  }
  ~SessionFileTest() override { std::filesystem::remove_all(folder_); }

  static std::byte byte_at(uint32_t seed, uint32_t record, size_t i) {
    return static_cast<std::byte>(seed * 31 + record * 7 + i * i);
  }
  static size_t bytes_of(uint32_t record) {
    return kPayload - 100 * size_t{record};
  }

  // A session that can be told from one of another seed everywhere.
  Status save(uint32_t seed, PageWriteFn write = nullptr) {
    SavedSession session{.model = seed,
                         .layout = seed + 1,
                         .length = 2,
                         .tokens = {5, static_cast<int32_t>(seed), 7},
                         .note = std::string(3000, 'n')};
    FLASH_ASSIGN_OR_RETURN(
        const auto writer,
        SessionWriter::create(path_, session, kPayload, std::move(write)));
    for (uint32_t r = 0; r < kRecords; ++r) {
      for (size_t i = 0; i < bytes_of(r); ++i) {
        writer->payload()[i] = byte_at(seed, r, i);
      }
      FLASH_RETURN_IF_ERROR(writer->put({r / 2, r, r % 2 == 0}, bytes_of(r)));
    }
    return writer->commit();
  }

  // The seed of the session that is there, whole; fails where it is not.
  Result<uint32_t> load() {
    FLASH_ASSIGN_OR_RETURN(const auto reader, SessionReader::open(path_));
    if (reader == nullptr) return invalid_input("no file");
    const SavedSession& session = reader->session();
    const auto seed = static_cast<uint32_t>(session.model);
    EXPECT_EQ(session.tokens.size(), 3u);
    EXPECT_EQ(session.tokens[1], static_cast<int32_t>(seed));
    EXPECT_EQ(session.note, std::string(3000, 'n'));
    EXPECT_EQ(reader->old_records() + reader->full_records(), kRecords);
    for (uint32_t r = 0; r < kRecords; ++r) {
      FLASH_ASSIGN_OR_RETURN(const auto record, reader->next(kPayload));
      const KvVersion expected{r / 2, r, r % 2 == 0};
      EXPECT_EQ(record.version, expected);
      EXPECT_EQ(record.bytes, bytes_of(r));
      for (size_t i = 0; i < record.bytes; ++i) {
        if (record.payload[i] != byte_at(seed, r, i)) {
          ADD_FAILURE() << "another payload in record " << r;
          break;
        }
      }
    }
    return seed;
  }

  size_t entries() const {
    size_t n = 0;
    for ([[maybe_unused]] const auto& e :
         std::filesystem::directory_iterator(folder_)) {
      ++n;
    }
    return n;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(SessionFileTest, WhatWasSavedComesBackAndTheNewestTakesThePlace) {
  ASSERT_TRUE(SessionReader::open(path_).ok());
  EXPECT_EQ(*SessionReader::open(path_), nullptr);
  for (const uint32_t seed : {3u, 90u}) {
    const Status saved = save(seed);
    ASSERT_TRUE(saved.ok()) << saved.message();
    const auto loaded = load();
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_EQ(*loaded, seed);
    EXPECT_EQ(entries(), 1u);
  }
  const auto mode = std::filesystem::status(path_).permissions();
  EXPECT_EQ(
      mode & std::filesystem::perms::mask,
      std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
}

TEST_F(SessionFileTest, EveryChangedBitIsNoticed) {
  ASSERT_TRUE(save(3).ok());
  const auto size = std::filesystem::file_size(path_);
  std::mt19937_64 random(11);
  const auto flip = [&](uint64_t at, char bit) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(at));
    const auto c = static_cast<char>(file.get() ^ bit);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(c);
  };
  for (int i = 0; i < 600; ++i) {
    // The header's fields each, then anything.
    const uint64_t at = i < 104 ? static_cast<uint64_t>(i) : random() % size;
    const char bit = static_cast<char>(1 << random() % 7);
    flip(at, bit);
    const auto loaded = load();
    ASSERT_FALSE(loaded.ok()) << at;
    EXPECT_EQ(loaded.status().code(), StatusCode::kIoError) << at;
    flip(at, bit);
  }
  EXPECT_TRUE(load().ok());
}

TEST_F(SessionFileTest, ATornOrMixedFileIsNoticed) {
  ASSERT_TRUE(save(4).ok());
  const std::string other = folder_ + "/other";
  std::filesystem::copy_file(path_, other);
  ASSERT_TRUE(save(3).ok());
  const auto size = std::filesystem::file_size(path_);
  const std::string whole = folder_ + "/whole";
  std::filesystem::copy_file(path_, whole);
  std::mt19937_64 random(12);
  for (int i = 0; i < 100; ++i) {
    const uint64_t cut = i < 10 ? static_cast<uint64_t>(i) : random() % size;
    std::filesystem::resize_file(path_, cut);
    if (i % 2 == 1) std::filesystem::resize_file(path_, size);  // zeros
    const auto loaded = load();
    // Nothing but zeros is anybody's.
    ASSERT_FALSE(loaded.ok()) << cut;
    std::filesystem::copy_file(
        whole, path_, std::filesystem::copy_options::overwrite_existing);
  }
  // Pages of another save of the same conversation.
  std::ifstream from(other, std::ios::binary);
  std::fstream to(path_, std::ios::in | std::ios::out | std::ios::binary);
  std::vector<char> page(12288);
  from.seekg(static_cast<std::streamoff>(size - page.size()));
  from.read(page.data(), static_cast<std::streamsize>(page.size()));
  to.seekp(static_cast<std::streamoff>(size - page.size()));
  to.write(page.data(), static_cast<std::streamsize>(page.size()));
  to.close();
  EXPECT_FALSE(load().ok());
}

TEST_F(SessionFileTest, AFullDiskKeepsWhatWasThere) {
  ASSERT_TRUE(save(3).ok());
  for (int room = 0; room < static_cast<int>(kRecords) + 1; ++room) {
    int left = room;
    const Status saved =
        save(4, [&](int fd, const void* p, size_t n, off_t at) -> ssize_t {
          if (left-- > 0) return ::pwrite(fd, p, n, at);
          errno = ENOSPC;
          return -1;
        });
    EXPECT_EQ(saved.code(), StatusCode::kExhausted);
    EXPECT_EQ(entries(), 1u);
    EXPECT_EQ(load().value(), 3u);
  }
  int eio = 3;
  const Status failed =
      save(4, [&](int fd, const void* p, size_t n, off_t at) -> ssize_t {
        // Short writes go on, too.
        if (eio-- > 0) return ::pwrite(fd, p, std::min<size_t>(n, 4096), at);
        errno = EIO;
        return -1;
      });
  EXPECT_EQ(failed.code(), StatusCode::kIoError);
  EXPECT_EQ(load().value(), 3u);
}

TEST_F(SessionFileTest, SomebodysFileIsLeftAlone) {
  std::ofstream(path_) << "# A text that is no session, and not short\n";
  EXPECT_EQ(load().status().code(), StatusCode::kInvalidInput);
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_EQ(load().status().code(), StatusCode::kInvalidInput);
  EXPECT_FALSE(save(3).ok());
  EXPECT_EQ(entries(), 1u);
  path_ = folder_ + "/none/talk";
  EXPECT_EQ(save(3).code(), StatusCode::kInvalidInput);
}

TEST_F(SessionFileTest, ALinkInPlaceOfThePartIsNotFollowed) {
  std::ofstream(folder_ + "/mine") << "precious";
  std::filesystem::create_symlink(folder_ + "/mine", path_ + ".new");
  EXPECT_FALSE(save(3).ok());
  EXPECT_EQ(std::filesystem::file_size(folder_ + "/mine"), 8u);
}

TEST_F(SessionFileTest, TwoThatSaveAtOnceDoNotMix) {
  const SavedSession session{.tokens = {1}};
  auto first = SessionWriter::create(path_, session, kPayload);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(save(3).code(), StatusCode::kExhausted);
  // Nor does one that reads take the part away.
  ASSERT_TRUE(SessionReader::open(path_).ok());
  EXPECT_EQ(entries(), 1u);
  EXPECT_TRUE((*first)->commit().ok());
  EXPECT_TRUE(save(3).ok());
  EXPECT_EQ(load().value(), 3u);
}

TEST_F(SessionFileTest, KilledWhileSavingThereIsTheOneBeforeOrTheNewOne) {
  ASSERT_TRUE(save(1).ok());
  std::mt19937_64 random(13);
  uint32_t last = 1;
  int changed = 0;
  int left_part = 0;
  for (int i = 0; i < 200; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      for (uint32_t seed = last + 1;; ++seed) {
        if (!save(seed).ok()) ::_exit(1);
      }
    }
    ::usleep(static_cast<useconds_t>(random() % 12000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    left_part += entries() > 1 ? 1 : 0;
    const auto loaded = load();
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_GE(*loaded, last);
    changed += *loaded != last ? 1 : 0;
    last = *loaded;
    EXPECT_EQ(entries(), 1u);
  }
  // It was killed before, while and after.
  EXPECT_GT(left_part, 0);
  EXPECT_GT(changed, 0);
}

}  // namespace
}  // namespace mlx_flash
