// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace mlx_flash {

// The contents of a regular file (also one of /proc, whose size reads as 0).
// Fails on anything else (a FIFO would block, a device never end) and on more
// than `bytes_max` bytes; memory stays in proportion to what was read.
Result<std::string> read_whole_file(const std::string& path, size_t bytes_max);

}  // namespace mlx_flash
