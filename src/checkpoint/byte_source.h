// SPDX-License-Identifier: MIT
#pragma once

// Bytes that a header parser reads: a file, or memory (tests and fuzzing).

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/file.h"

namespace mlx_flash {

// Reading is thread-safe.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual const std::string& name() const = 0;  // for messages
  virtual uint64_t size() const = 0;
  // Fills `out` from `offset`; fails, naming both, if it cannot.
  virtual Status read(uint64_t offset, std::span<std::byte> out) const = 0;
};

class FileSource : public ByteSource {
 public:
  static Result<FileSource> open(const std::string& path);
  const std::string& name() const override { return file_.path(); }
  uint64_t size() const override { return file_.size(); }
  Status read(uint64_t offset, std::span<std::byte> out) const override;

 private:
  explicit FileSource(File file) : file_(std::move(file)) {}
  File file_;
};

// Does not own the bytes.
class MemorySource : public ByteSource {
 public:
  MemorySource(std::string name, std::span<const std::byte> bytes)
      : name_(std::move(name)), bytes_(bytes) {}
  const std::string& name() const override { return name_; }
  uint64_t size() const override { return bytes_.size(); }
  Status read(uint64_t offset, std::span<std::byte> out) const override;

 private:
  std::string name_;
  std::span<const std::byte> bytes_;
};

// Reads a source from one position forwards through a buffer. Never past
// `end`: a request that would is an error with its offset, before any memory is
// taken for it. Not thread-safe. The source outlives it.
class ByteReader {
 public:
  // REQUIRES: begin <= end <= source.size().
  ByteReader(const ByteSource& source, uint64_t begin, uint64_t end);

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return end_ - position_; }

  Status read(std::span<std::byte> out);
  Status skip(uint64_t bytes);

  // A little-endian number or float.
  template <typename T>
  Result<T> number() {
    std::array<std::byte, sizeof(T)> raw;
    FLASH_RETURN_IF_ERROR(read(raw));
    if constexpr (std::endian::native == std::endian::big) {
      for (size_t i = 0; i < sizeof(T) / 2; ++i) {
        std::swap(raw[i], raw[sizeof(T) - 1 - i]);
      }
    }
    return std::bit_cast<T>(raw);
  }

  // `bytes` bytes as text. The caller has bounded `bytes`.
  Result<std::string> text(uint64_t bytes);

  // One byte, or -1 at the end, or -2 after a read error (error() says which).
  int next() {
    if (buffer_at_ == buffer_used_) return next_after_fill();
    ++position_;
    return std::to_integer<int>(buffer_[buffer_at_++]);
  }
  const Status& error() const { return error_; }

 private:
  Status fill();
  int next_after_fill();

  const ByteSource* source_;
  std::vector<std::byte> buffer_;
  size_t buffer_at_ = 0;    // next byte in buffer_
  size_t buffer_used_ = 0;  // bytes in buffer_
  uint64_t position_ = 0;   // in the source, of the next byte
  uint64_t end_ = 0;
  Status error_;
};

}  // namespace mlx_flash
