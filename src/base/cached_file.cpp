// SPDX-License-Identifier: MIT

// The part of memory.h that Linux and macOS do alike.

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/memory.h"

namespace mlx_flash {
namespace {

#if defined(__APPLE__)
using MincoreByte = char;
#else
using MincoreByte = unsigned char;
#endif

}  // namespace

Result<uint64_t> cached_file_bytes(const std::string& path) {
  const auto failed = [&](const char* what) {
    return io_error(
        fmt::format("{}: {}: {}", path, what, std::strerror(errno)));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return failed("cannot open");
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return io_error(fmt::format("{}: not a regular file", path));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    ::close(fd);
    return uint64_t{0};
  }
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  if (map == MAP_FAILED) return failed("cannot map");
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<MincoreByte> resident((size + page - 1) / page);
  const int rc = ::mincore(map, size, resident.data());
  const int error = errno;
  ::munmap(map, size);
  if (rc != 0) {
    errno = error;
    return failed("mincore");
  }
  const auto pages = std::count_if(resident.begin(),
                                   resident.end(),
                                   [](MincoreByte c) { return (c & 1) != 0; });
  return static_cast<uint64_t>(pages) * page;
}

}  // namespace mlx_flash
