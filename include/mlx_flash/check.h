// SPDX-License-Identifier: MIT
#pragma once

// Checks of what the programmer promised. A failed check is a bug in this
// project: the process stops with file, line and condition. Nothing that comes
// from outside (files, flags, requests, the disk) may reach one.

namespace mlx_flash {

[[noreturn]] void check_failed(const char* file,
                               int line,
                               const char* condition);

}  // namespace mlx_flash

#define FLASH_CHECK(condition)  \
  (static_cast<bool>(condition) \
       ? static_cast<void>(0)   \
       : ::mlx_flash::check_failed(__FILE__, __LINE__, #condition))
