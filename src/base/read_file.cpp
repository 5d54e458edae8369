// SPDX-License-Identifier: MIT
#include "base/read_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/size.h"

namespace mlx_flash {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

Status too_large(const std::string& path, size_t bytes_max) {
  return invalid_input(fmt::format(
      "{}: larger than the {} allowed here", path, format_size(bytes_max)));
}

}  // namespace

Result<std::string> read_whole_file(const std::string& path, size_t bytes_max) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const Descriptor file(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) {
    const int error = errno;
    const std::string message =
        fmt::format("{}: cannot open: {}", path, std::strerror(error));
    return error == EMFILE || error == ENFILE || error == EIO
               ? io_error(message)
               : invalid_input(message);
  }
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) {
    return io_error(
        fmt::format("{}: cannot stat: {}", path, std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return invalid_input(fmt::format("{}: not a regular file", path));
  }
  if (info.st_size > 0 && static_cast<uint64_t>(info.st_size) > bytes_max) {
    return too_large(path, bytes_max);
  }
  std::string text;
  text.resize(std::min<size_t>(
      bytes_max, static_cast<size_t>(std::max<off_t>(info.st_size, 4095)) + 1));
  size_t used = 0;
  while (true) {
    if (used == text.size()) {
      if (used >= bytes_max) {
        char extra = 0;
        if (::read(file.get(), &extra, 1) == 1) {
          return too_large(path, bytes_max);
        }
        break;
      }
      text.resize(std::min(bytes_max, used * 2));
    }
    const ssize_t n =
        ::read(file.get(), text.data() + used, text.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return io_error(fmt::format(
          "{}: read error at byte {}: {}", path, used, std::strerror(errno)));
    }
    if (n == 0) break;
    used += static_cast<size_t>(n);
  }
  text.resize(used);
  return text;
}

}  // namespace mlx_flash
