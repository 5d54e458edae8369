// SPDX-License-Identifier: MIT
#pragma once

// A file of pseudo-random bytes in the current folder (so that it lies on a
// real disk and direct I/O works), removed again. For tests.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "io/read_queue_sim.h"

namespace mlx_flash {

class TempFile {
 public:
  // Content: sim_fill() of "temp" and the offset, on disk when it returns.
  explicit TempFile(uint64_t bytes) {
    static std::atomic<int> count{0};
    path_ = "flash-test-" + std::to_string(::getpid()) + "-" +
            std::to_string(count++) + ".bin";
    const int fd = open_fd(O_WRONLY | O_CREAT | O_TRUNC);
    std::vector<std::byte> block(1 << 20);
    for (uint64_t at = 0; at < bytes; at += block.size()) {
      if (bytes - at < block.size()) block.resize(bytes - at);
      sim_fill("temp", at, block);
      FLASH_CHECK(::write(fd, block.data(), block.size()) ==
                  static_cast<ssize_t>(block.size()));
    }
    FLASH_CHECK(::fsync(fd) == 0);
    ::close(fd);
  }
  ~TempFile() { ::unlink(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  const std::string& path() const { return path_; }

  static std::vector<std::byte> content(uint64_t offset, uint64_t bytes) {
    std::vector<std::byte> out(bytes);
    sim_fill("temp", offset, out);
    return out;
  }

  void truncate(uint64_t bytes) const {
    FLASH_CHECK(::truncate(path_.c_str(), static_cast<off_t>(bytes)) == 0);
  }
  // Writes one byte; its time of change is a second later than any before.
  void scribble(uint64_t offset) const {
    const int fd = open_fd(O_WRONLY);
    const char byte = 'x';
    FLASH_CHECK(::pwrite(fd, &byte, 1, static_cast<off_t>(offset)) == 1);
    struct timespec times[2] = {{0, UTIME_OMIT}, {0, 0}};
    struct stat s = {};
    FLASH_CHECK(::fstat(fd, &s) == 0);
    times[1].tv_sec = s.st_mtime + 1;
    FLASH_CHECK(::futimens(fd, times) == 0);
    ::close(fd);
  }

 private:
  int open_fd(int flags) const {
    const int fd = ::open(path_.c_str(), flags | O_CLOEXEC, 0644);
    FLASH_CHECK(fd >= 0);
    return fd;
  }
  std::string path_;
};

}  // namespace mlx_flash
