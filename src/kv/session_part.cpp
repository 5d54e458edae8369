// SPDX-License-Identifier: MIT
#include "kv/session_part.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace mlx_flash {

std::string part_name(const std::string& path) {
  return path + ".new";
}

int open_locked(const std::string& name, int flags) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    const int fd = ::open(name.c_str(),
                          O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | flags,
                          0600);
    if (fd < 0) return -1;
    struct stat ours = {};
    struct stat there = {};
    int error = 0;
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0 || ::fstat(fd, &ours) != 0) {
      error = errno;
    } else if (!S_ISREG(ours.st_mode)) {
      error = EINVAL;
    } else if (::lstat(name.c_str(), &there) == 0 &&
               there.st_ino == ours.st_ino && there.st_dev == ours.st_dev) {
      return fd;
    }
    (void)::close(fd);
    if (error != 0) {
      errno = error;
      return -1;
    }
    // It got or lost its name between our two steps: a part that was finished,
    // or a file that another took the place of.
  }
  errno = EWOULDBLOCK;
  return -1;
}

void remove_part(const std::string& path) {
  const std::string name = part_name(path);
  const int fd = open_locked(name, 0);
  if (fd < 0) return;
  (void)::unlink(name.c_str());
  (void)::close(fd);
}

void sync_folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder =
      slash == path.npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)::fsync(fd);
  (void)::close(fd);
}

Status save_failed(const std::string& path, int error) {
  const std::string text =
      fmt::format("{}: saving the session: {}", path, std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return exhausted(text + "; what was saved before is still there");
  }
  if (error == EWOULDBLOCK) {
    return exhausted(path + ": another process is saving this session");
  }
  if (error == EACCES || error == ENOENT || error == ENOTDIR ||
      error == EISDIR || error == EROFS || error == EINVAL || error == ELOOP) {
    return invalid_input(text);
  }
  return io_error(text);
}

}  // namespace mlx_flash
