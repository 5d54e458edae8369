// SPDX-License-Identifier: MIT
#pragma once

// A file that nobody else reaches and that nothing outlives (kv/kv_file.h).

#include <cstddef>
#include <string>

#include "base/status.h"
#include "io/file.h"

namespace mlx_flash {

struct PrivateFile {
  int fd = -1;  // to write to; the caller closes it
  File reader;
};

// Opens a new, empty file without a name in `folder` (empty: the system's
// temporary one on a real disk), past the page cache where that can be had.
// kInvalidInput for a folder that is a link, that strangers may write to, or
// that we may not.
Result<PrivateFile> make_private_file(const std::string& folder);

// Removes what processes that have died left in the folder; how many.
size_t remove_dead_folders(int folder_fd);

}  // namespace mlx_flash
