// SPDX-License-Identifier: MIT
#pragma once

// A read-only file that is read at positions, and never through a shared
// cursor.
//
// Direct mode bypasses the page cache (O_DIRECT; F_NOCACHE on a Mac), so that
// weights do not fill memory behind our budget's back. Where the file system
// refuses it the file is opened buffered, and every read is followed by
// dropping its pages; direct() tells which, and the process says so once.
//
// The file must stay as it was at open(): one that is written to or cut while
// it is in use gives a Status, never other data (check_unchanged).
//
// Move-only. Reading is thread-safe.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"

namespace mlx_flash {

class File {
 public:
  enum class Mode { kBuffered, kDirect };

  // Fails for what is not a regular file.
  static Result<File> open(const std::string& path, Mode mode);
  // Only a name and a size, for a simulated queue that makes the data: there is
  // no descriptor, and read() fails.
  static File described(std::string path, uint64_t size, size_t alignment);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }
  bool direct() const { return direct_; }
  int fd() const { return fd_; }

  // What offset, length and buffer of a raw read must be multiples of: 1 when
  // buffered, else the device's logical block (statx STX_DIOALIGN, or 4096).
  size_t alignment() const { return alignment_; }

  // Reads exactly out.size() bytes at any offset into any memory, through a
  // small bounce buffer when direct. Short reads and EINTR are continued;
  // errors and the end of the file are a Status with path and offset.
  // For headers and single rows; weights go through ReadQueue.
  Status read(uint64_t offset, std::span<std::byte> out) const;

  // The file is our own and we write to it: check_unchanged() is content.
  void expect_growth() { growing_ = true; }

  // Fails if size or time of last change differ from those at open(). One
  // fstat: cheap beside a read, and called after each.
  Status check_unchanged() const;

  // Has the page cache forget the range if the file is buffered.
  void drop_cached(uint64_t offset, uint64_t bytes) const;

 private:
  File() = default;

  std::string path_;
  uint64_t size_ = 0;
  int64_t modified_ns_ = 0;  // time of last change at open()
  size_t alignment_ = 1;
  int fd_ = -1;
  bool direct_ = false;
  bool growing_ = false;
};

}  // namespace mlx_flash
