// SPDX-License-Identifier: MIT
#include "kv/page_write.h"

#include <fcntl.h>

#include <cerrno>

namespace mlx_flash {

int write_pages(int fd,
                const std::byte* data,
                size_t n,
                uint64_t offset,
                const PageWriteFn& write) {
  for (size_t done = 0; done < n;) {
    const ssize_t written =
        write(fd, data + done, n - done, static_cast<off_t>(offset + done));
    if (written > 0) {
      done += static_cast<size_t>(written);
      // A direct write goes on where whole sectors end.
      done = done / 512 * 512;
      continue;
    }
    const int error = written == 0 ? ENOSPC : errno;
    if (error == EINTR) continue;
#if defined(O_DIRECT)
    const int flags = ::fcntl(fd, F_GETFL);
    if (error == EINVAL && flags >= 0 && (flags & O_DIRECT) != 0) {
      if (::fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0) continue;
    }
#endif
    return error;
  }
  return 0;
}

void write_directly([[maybe_unused]] int fd) {
#if defined(O_DIRECT)
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0) (void)::fcntl(fd, F_SETFL, flags | O_DIRECT);
#elif defined(F_NOCACHE)
  (void)::fcntl(fd, F_NOCACHE, 1);
#endif
}

}  // namespace mlx_flash
