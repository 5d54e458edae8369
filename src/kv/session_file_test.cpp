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
  static KvVersion version_of(uint32_t record) {
    return {record / 2, record, record % 2 == 0};
  }

  // A session that can be told from one of another seed everywhere.
  Status save(uint32_t seed, PageWriteFn write = nullptr) {
    SavedSession session{.model = seed,
                         .layout = seed + 1,
                         .length = 2,
                         .tokens = {5, static_cast<int32_t>(seed), 7},
                         .note = std::string(3000, 'n')};
    FLASH_ASSIGN_OR_RETURN(const auto writer,
                           SessionWriter::create(path_,
                                                 session,
                                                 {.payload_bytes = kPayload,
                                                  .write = std::move(write)}));
    EXPECT_EQ(writer->common(), 0u);
    for (uint32_t r = 0; r < kRecords; ++r) {
      for (size_t i = 0; i < bytes_of(r); ++i) {
        writer->payload()[i] = byte_at(seed, r, i);
      }
      FLASH_RETURN_IF_ERROR(writer->put(version_of(r), bytes_of(r)));
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
    EXPECT_EQ(reader->records(), kRecords);
    EXPECT_FALSE(reader->earlier());
    for (uint32_t r = 0; r < kRecords; ++r) {
      FLASH_ASSIGN_OR_RETURN(const auto record, reader->next(kPayload));
      EXPECT_EQ(record.version, version_of(r));
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
    // The header's fields each, then anything but the place of another head.
    uint64_t at = i < 128 ? static_cast<uint64_t>(i) : random() % size;
    if (at >= 4096 && at < 8192) at -= 4096;
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
  std::ofstream(path_) << "mlx-flash/kv/01\n" << std::string(9000, 'x');
  EXPECT_EQ(load().status().code(), StatusCode::kInvalidInput);
  EXPECT_NE(load().status().message().find("format 1"), std::string::npos);
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
  auto first =
      SessionWriter::create(path_, session, {.payload_bytes = kPayload});
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

// A conversation of two layers that grows, is saved over and over, and may go
// back and on in other words: what is in a block is a function of its tokens.
class GrowingSession : public SessionFileTest {
 protected:
  static constexpr size_t kBlock = 64;
  static constexpr uint32_t kLayers = 2;

  // Token i of a conversation that takes turn `salt` at token 100.
  static int32_t token(size_t i, uint32_t salt) {
    return static_cast<int32_t>(i * 7 + (i < 100 ? 0 : salt));
  }
  static std::byte byte_of(const std::vector<int32_t>& tokens,
                           const KvVersion& version,
                           size_t i) {
    const size_t end = std::min(tokens.size(), (version.block + 1) * kBlock);
    const auto last = static_cast<size_t>(tokens[end - 1]);
    return static_cast<std::byte>(last * 3 + i + version.layer +
                                  (version.old ? 50 : 0));
  }
  static std::vector<KvVersion> versions(size_t length) {
    std::vector<KvVersion> all;
    const auto whole = static_cast<uint32_t>(length / kBlock);
    const uint32_t old = whole > 2 ? whole - 2 : 0;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t b = 0; b < old; ++b) all.push_back({layer, b, true});
      for (uint32_t b = old; b * kBlock < length; ++b) {
        all.push_back({layer, b, false});
      }
    }
    return all;
  }
  static std::vector<int32_t> tokens_of(size_t length, uint32_t salt) {
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < length; ++i) tokens.push_back(token(i, salt));
    return tokens;
  }

  Result<SavedMark> save(size_t length,
                         const SavedMark& base,
                         uint32_t salt = 0,
                         PageWriteFn write = nullptr) {
    const SavedSession session{.model = 7,
                               .layout = 8,
                               .length = length,
                               .tokens = tokens_of(length, salt),
                               .note = std::to_string(length)};
    FLASH_ASSIGN_OR_RETURN(const auto writer,
                           SessionWriter::create(path_,
                                                 session,
                                                 {.payload_bytes = kPayload,
                                                  .base = base,
                                                  .write = std::move(write)}));
    for (const KvVersion& version : versions(length)) {
      if ((version.block + 1) * kBlock <= writer->common() &&
          writer->keep(version)) {
        continue;
      }
      for (size_t i = 0; i < kPayload; ++i) {
        writer->payload()[i] = byte_of(session.tokens, version, i);
      }
      FLASH_RETURN_IF_ERROR(writer->put(version, kPayload));
    }
    FLASH_RETURN_IF_ERROR(writer->commit());
    return writer->mark();
  }

  struct Loaded {
    size_t length = 0;
    SavedMark mark;
    bool earlier = false;
  };
  // What is there, if all of it is what was saved.
  Result<Loaded> load(uint32_t salt = 0) {
    FLASH_ASSIGN_OR_RETURN(const auto reader, SessionReader::open(path_));
    if (reader == nullptr) return invalid_input("no file");
    const SavedSession& session = reader->session();
    const size_t length = session.length;
    EXPECT_EQ(session.tokens, tokens_of(length, salt));
    EXPECT_EQ(session.note, std::to_string(length));
    const auto expected = versions(length);
    EXPECT_EQ(reader->records(), expected.size());
    for (const KvVersion& version : expected) {
      FLASH_ASSIGN_OR_RETURN(const auto record, reader->next(kPayload));
      EXPECT_EQ(record.version, version);
      for (size_t i = 0; i < record.bytes; ++i) {
        if (record.payload[i] != byte_of(session.tokens, version, i)) {
          return internal_error("another payload");
        }
      }
    }
    return Loaded{length, reader->mark(), reader->earlier()};
  }
};

TEST_F(GrowingSession, OnlyWhatIsNewIsWritten) {
  uint64_t written = 0;
  const auto count = [&](int fd, const void* p, size_t n, off_t at) {
    written += n;
    return ::pwrite(fd, p, n, at);
  };
  SavedMark mark = save(640, {}).value();
  const auto first = std::filesystem::file_size(path_);
  uint64_t largest = 0;
  for (size_t length = 650; length < 2000; length += 10) {
    written = 0;
    const auto saved = save(length, mark, 0, count);
    ASSERT_TRUE(saved.ok()) << saved.status().message();
    EXPECT_EQ(saved->file, mark.file);
    mark = *saved;
    largest = std::max(largest, written);
    const auto loaded = load();
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_EQ(loaded->length, length);
    EXPECT_EQ(loaded->mark, mark);
    EXPECT_FALSE(loaded->earlier);
  }
  // In two layers: the open block, one that got old, one that was begun; an
  // index and two heads.
  constexpr uint64_t kRecord = 12288;
  EXPECT_LE(largest, 2 * 3 * kRecord + 4 * 4096 + 2 * 4096);
  // A file of 2,000 tokens is three times that of 640, and has room to write
  // in.
  const auto size = std::filesystem::file_size(path_);
  EXPECT_LT(size, 4 * first);
  // The same again: nothing but index and head.
  written = 0;
  ASSERT_TRUE(save(1990, mark, 0, count).ok());
  EXPECT_LE(written, 2 * 2 * kRecord + 6 * 4096);
}

TEST_F(GrowingSession, GoneBackAndOnInOtherWordsNothingOldIsTaken) {
  SavedMark mark = save(1000, {}).value();
  for (const auto& [length, salt] : {std::pair<size_t, uint32_t>{900, 5},
                                     {130, 5},
                                     {128, 9},
                                     {700, 9},
                                     {64, 0},
                                     {1, 0},
                                     {333, 2}}) {
    const auto saved = save(length, mark, salt);
    ASSERT_TRUE(saved.ok()) << saved.status().message();
    mark = *saved;
    const auto loaded = load(salt);
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_EQ(loaded->length, length);
  }
}

TEST_F(GrowingSession, AWrongPrefixWouldBeSeen) {
  // The payloads tell conversations apart: the tests above could fail.
  ASSERT_TRUE(save(640, {}).ok());
  const auto reader = SessionReader::open(path_).value();
  const auto record = reader->next(kPayload).value();
  EXPECT_EQ(record.payload[0], byte_of(tokens_of(640, 0), {0, 0, true}, 0));
  EXPECT_NE(byte_of(tokens_of(640, 0), {0, 3, true}, 0),
            byte_of(tokens_of(640, 9), {0, 3, true}, 0));
}

TEST_F(GrowingSession, AnothersSaveIsNotContinued) {
  const SavedMark mine = save(640, {}).value();
  // Another process goes on with it meanwhile, or puts a file in its place.
  const SavedMark other = save(700, mine, 3).value();
  EXPECT_EQ(other.file, mine.file);
  const SavedMark third = save(650, mine).value();
  EXPECT_NE(third.file, mine.file);
  EXPECT_EQ(load()->length, 650u);
  ASSERT_TRUE(save(80, other, 3).ok());
  EXPECT_EQ(load(3)->length, 80u);
  // While it is written the file is nobody else's.
  const SavedMark last = save(640, {}).value();
  const SavedSession session{.model = 7, .layout = 8};
  const auto writer = SessionWriter::create(
      path_, session, {.payload_bytes = kPayload, .base = last});
  ASSERT_TRUE(writer.ok());
  const auto aside = save(641, last);
  ASSERT_TRUE(aside.ok());
  EXPECT_NE(aside->file, last.file);
  EXPECT_EQ(load()->length, 641u);
}

// A disk that is full, or gone, at any write: the save before is still there,
// and the next goes on from it.
TEST_F(GrowingSession, AfterAnyWriteThatFailsThereIsTheSaveBefore) {
  SavedMark mark = save(640, {}).value();
  const auto before = std::filesystem::file_size(path_);
  for (int room = 0;; ++room) {
    int left = room;
    size_t torn = static_cast<size_t>(room) % 3 * 1024;
    const auto saved =
        save(900,
             mark,
             0,
             [&](int fd, const void* p, size_t n, off_t at) -> ssize_t {
               if (left-- > 0) return ::pwrite(fd, p, n, at);
               // A part of what was asked for may be there.
               if (torn > 0) {
                 std::vector<std::byte> page(n);
                 std::memcpy(page.data(), p, n);
                 (void)!::pwrite(fd, page.data(), std::min(n, torn), at);
                 torn = 0;
               }
               errno = room % 2 == 0 ? ENOSPC : EIO;
               return -1;
             });
    if (saved.ok()) {
      EXPECT_GT(room, 10);
      break;
    }
    EXPECT_EQ(saved.status().code(),
              room % 2 == 0 ? StatusCode::kExhausted : StatusCode::kIoError);
    const auto loaded = load();
    ASSERT_TRUE(loaded.ok()) << room << loaded.status().message();
    EXPECT_EQ(loaded->length, 640u);
    EXPECT_EQ(loaded->mark, mark);
    EXPECT_EQ(std::filesystem::file_size(path_), before);
    EXPECT_EQ(entries(), 1u);
  }
  EXPECT_EQ(load()->length, 900u);
}

TEST_F(GrowingSession, ATornHeadIsTheSaveBeforeAndIsSaid) {
  const SavedMark mark = save(640, {}).value();
  const std::string before = folder_ + "/before";
  std::filesystem::copy_file(path_, before);
  const SavedMark next = save(900, mark).value();
  // As if the new head's page, alone, had come to the disk in part.
  std::ifstream from(before, std::ios::binary);
  std::vector<char> head(4096);
  from.read(head.data(), 4096);
  std::fstream to(path_, std::ios::in | std::ios::out | std::ios::binary);
  to.seekp(static_cast<std::streamoff>(mark.save % 2 * 4096));
  to.write(head.data(), 4096);
  to.seekp(static_cast<std::streamoff>(next.save % 2 * 4096 + 60));
  to.write("torn", 4);
  to.close();
  const auto loaded = load();
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->length, 640u);
  EXPECT_TRUE(loaded->earlier);
  // It can be continued.
  ASSERT_TRUE(save(700, mark).ok());
  EXPECT_EQ(load()->length, 700u);
  EXPECT_FALSE(load()->earlier);
}

TEST_F(GrowingSession, KilledAtAnyPointThereIsASaveAndItIsWhole) {
  ASSERT_TRUE(save(300, {}).ok());
  std::mt19937_64 random(14);
  uint64_t last = load()->mark.save;
  int went_on = 0;
  int cut = 0;
  for (int i = 0; i < 200; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto loaded = load();
      if (!loaded.ok()) ::_exit(1);
      SavedMark mark = loaded->mark;
      for (size_t length = loaded->length;;) {
        // Forth by some tokens, now and then far back.
        length = length > 1500 ? 200 : length + 37;
        const auto saved = save(length, mark);
        if (!saved.ok() || saved->file != mark.file) ::_exit(2);
        mark = *saved;
      }
    }
    ::usleep(static_cast<useconds_t>(random() % 12000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    const auto loaded = load();
    ASSERT_TRUE(loaded.ok()) << i << loaded.status().message();
    EXPECT_GE(loaded->mark.save, last);
    went_on += loaded->mark.save > last ? 1 : 0;
    last = loaded->mark.save;
    EXPECT_EQ(entries(), 1u);
    std::ifstream file(path_, std::ios::binary);
    std::vector<char> heads(8192);
    file.read(heads.data(), 8192);
    const auto any = [](char c) { return c != 0; };
    cut += std::any_of(heads.begin(), heads.begin() + 4096, any) &&
                   std::any_of(heads.begin() + 4096, heads.end(), any)
               ? 1
               : 0;
  }
  EXPECT_GT(went_on, 0);
  RecordProperty("killed between two heads", cut);
}

}  // namespace
}  // namespace mlx_flash
