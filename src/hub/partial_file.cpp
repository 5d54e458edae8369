// SPDX-License-Identifier: MIT
#include "hub/partial_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "hub/libraries.h"

namespace mlx_flash::hub {
namespace {

constexpr uint64_t kMagic = 0x31305f7472617066;  // "fpart_01"
constexpr size_t kHeaderWords = 3;
constexpr uint64_t kPiecesMax = 1 << 20;
constexpr size_t kHashBytes = size_t{1} << 20;

Status failed(const std::string& path, const char* what) {
  const int error = errno;
  const std::string text =
      fmt::format("{}: cannot {}: {}", path, what, std::strerror(error));
  return error == ENOSPC || error == EDQUOT
             ? exhausted(text +
                         "; free some space and start again: what was "
                         "downloaded is kept")
             : io_error(text);
}

Status write_at(int fd,
                const std::string& path,
                const void* data,
                size_t bytes,
                uint64_t offset) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd, from, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(path, "write");
    from += n;
    bytes -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
  }
  return Status();
}

bool read_at(int fd, void* data, size_t bytes, uint64_t offset) {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pread(fd, to, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to += n;
    bytes -= static_cast<size_t>(n);
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

std::vector<Piece> cut(uint64_t size, uint64_t piece_bytes) {
  std::vector<Piece> pieces;
  for (uint64_t begin = 0; begin < size; begin += piece_bytes) {
    pieces.push_back(
        {.begin = begin, .end = begin + std::min(piece_bytes, size - begin)});
  }
  return pieces;
}

}  // namespace

PartialFile::~PartialFile() {
  if (data_ >= 0) ::close(data_);
  if (state_ >= 0) ::close(state_);
}

Status PartialFile::open(const std::string& blob,
                         uint64_t size,
                         uint64_t piece_bytes) {
  FLASH_CHECK(data_ < 0 && piece_bytes > 0);
  if (size / piece_bytes >= kPiecesMax) {
    return invalid_input(fmt::format(
        "{}: {} bytes are more than one file can have here", blob, size));
  }
  blob_ = blob;
  size_ = size;
  data_path_ = blob + ".mlx-flash.incomplete";
  state_path_ = blob + ".mlx-flash-state.incomplete";
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
  data_ = ::open(data_path_.c_str(), kFlags, 0666);
  if (data_ < 0) return failed(data_path_, "open");
  state_ = ::open(state_path_.c_str(), kFlags, 0666);
  if (state_ < 0) return failed(state_path_, "open");
  if (!load()) FLASH_RETURN_IF_ERROR(reset(piece_bytes));
  resumed_bytes_ = done_bytes();
  return Status();
}

// False: there is nothing to go on from.
bool PartialFile::load() {
  struct stat data {};
  struct stat state {};
  if (::fstat(data_, &data) != 0 || ::fstat(state_, &state) != 0) return false;
  std::array<uint64_t, kHeaderWords> header{};
  if (static_cast<uint64_t>(data.st_size) != size_ ||
      !read_at(state_, header.data(), sizeof(header), 0) ||
      header[0] != kMagic || header[1] != size_ || header[2] == 0 ||
      size_ / header[2] >= kPiecesMax) {
    return false;
  }
  std::vector<Piece> pieces = cut(size_, header[2]);
  std::vector<uint64_t> counts(pieces.size());
  if (!read_at(state_,
               counts.data(),
               counts.size() * sizeof(uint64_t),
               sizeof(header))) {
    return false;
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (counts[i] > pieces[i].end - pieces[i].begin) return false;
    pieces[i].done = counts[i];
  }
  pieces_ = std::move(pieces);
  return true;
}

Status PartialFile::reset(uint64_t piece_bytes) {
  pieces_ = cut(size_, piece_bytes);
  std::vector<uint64_t> words(kHeaderWords + pieces_.size());
  words[0] = kMagic;
  words[1] = size_;
  words[2] = piece_bytes;
  // First nothing counts, then the bytes go.
  if (::ftruncate(state_, 0) != 0) return failed(state_path_, "cut");
  if (::ftruncate(data_, 0) != 0 ||
      ::ftruncate(data_, static_cast<off_t>(size_)) != 0) {
    return failed(data_path_, "make as long as it will be");
  }
  return write_at(
      state_, state_path_, words.data(), words.size() * sizeof(uint64_t), 0);
}

uint64_t PartialFile::done_bytes() const {
  const std::lock_guard lock(mutex_);
  uint64_t done = 0;
  for (const Piece& piece : pieces_) done += piece.done;
  return done;
}

std::optional<size_t> PartialFile::take() {
  const std::lock_guard lock(mutex_);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (pieces_[i].busy || pieces_[i].complete()) continue;
    pieces_[i].busy = true;
    return i;
  }
  return std::nullopt;
}

void PartialFile::give_back(size_t piece) {
  const std::lock_guard lock(mutex_);
  if (piece < pieces_.size()) pieces_[piece].busy = false;
}

Piece PartialFile::piece(size_t index) const {
  const std::lock_guard lock(mutex_);
  return index < pieces_.size() ? pieces_[index] : Piece();
}

Status PartialFile::write(size_t piece, std::span<const char> bytes) {
  // Not under the lock: a write may wait for the disk, and the piece is the
  // caller's alone.
  const Piece before = this->piece(piece);
  const uint64_t offset = before.begin + before.done;
  FLASH_CHECK(before.busy && bytes.size() <= before.end - offset);
  FLASH_RETURN_IF_ERROR(
      write_at(data_, data_path_, bytes.data(), bytes.size(), offset));
  const std::lock_guard lock(mutex_);
  pieces_[piece].done += bytes.size();
  return store(piece);
}

Status PartialFile::store(size_t piece) {
  const uint64_t done = pieces_[piece].done;
  return write_at(state_,
                  state_path_,
                  &done,
                  sizeof(done),
                  (kHeaderWords + piece) * sizeof(uint64_t));
}

Status PartialFile::restart_whole() {
  const std::lock_guard lock(mutex_);
  for (const Piece& piece : pieces_) FLASH_CHECK(!piece.busy);
  resumed_bytes_ = 0;
  return reset(std::max<uint64_t>(1, size_));
}

Status PartialFile::rewind(size_t piece) {
  const std::lock_guard lock(mutex_);
  pieces_[piece].done = 0;
  return store(piece);
}

Result<std::string> PartialFile::digest(bool git,
                                        const std::atomic<bool>& stop) const {
  FLASH_ASSIGN_OR_RETURN(
      const std::unique_ptr<Hasher> hasher,
      make_hasher(git ? HashKind::kSha1 : HashKind::kSha256));
  if (git) {
    const std::string head = fmt::format("blob {}", size_);
    hasher->add(head.c_str(), head.size() + 1);
  }
  std::vector<char> buffer(
      static_cast<size_t>(std::min<uint64_t>(kHashBytes, size_)));
  for (uint64_t offset = 0; offset < size_;) {
    if (stop.load()) return cancelled("stopped");
    const size_t bytes =
        static_cast<size_t>(std::min<uint64_t>(buffer.size(), size_ - offset));
    if (!read_at(data_, buffer.data(), bytes, offset)) {
      return failed(data_path_, "read back");
    }
    hasher->add(buffer.data(), bytes);
    offset += bytes;
  }
  return hasher->hex();
}

Status PartialFile::publish() {
  if (::fsync(data_) != 0) return failed(data_path_, "write to the disk");
  if (::rename(data_path_.c_str(), blob_.c_str()) != 0) {
    return failed(blob_, "move into place");
  }
  ::unlink(state_path_.c_str());
  return Status();
}

void PartialFile::discard() {
  ::unlink(state_path_.c_str());
  ::unlink(data_path_.c_str());
}

uint64_t PartialFile::bytes_on_disk(const std::string& blob) {
  struct stat info {};
  const std::string path = blob + ".mlx-flash.incomplete";
  if (::stat(path.c_str(), &info) != 0) return 0;
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

}  // namespace mlx_flash::hub
