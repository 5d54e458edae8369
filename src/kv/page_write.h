// SPDX-License-Identifier: MIT
#pragma once

// Whole pages to a file, past the page cache where it is open that way.

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>

namespace mlx_flash {

// As pwrite.
using PageWriteFn = std::function<ssize_t(int, const void*, size_t, off_t)>;

// Writes n bytes at the offset, whole pages all of them; goes on after short
// writes and signals, and buffered where the file system refuses direct ones.
// Returns 0 or an errno. Thread-safe if `write` is.
int write_pages(int fd,
                const std::byte* data,
                size_t n,
                uint64_t offset,
                const PageWriteFn& write);

// The descriptor's writes go past the page cache from now on, where they can.
void write_directly(int fd);

}  // namespace mlx_flash
