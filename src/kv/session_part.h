// SPDX-License-Identifier: MIT
#pragma once

// Names, locks and errors of session files. Of session_file.h alone.

#include <string>

#include "base/status.h"

namespace mlx_flash {

// FILE.new.
std::string part_name(const std::string& path);

// Opens a file of ours for writing and locks it, never through a link; -1 with
// errno, EWOULDBLOCK if another process has it.
int open_locked(const std::string& name, int flags);

// Removes the part of a process that is gone.
void remove_part(const std::string& path);

// A new name is on the disk when its folder is.
void sync_folder(const std::string& path);

// What to say of an errno while saving.
Status save_failed(const std::string& path, int error);

}  // namespace mlx_flash
