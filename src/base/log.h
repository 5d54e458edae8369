// SPDX-License-Identifier: MIT
#pragma once

// Messages for people, on stderr. Nothing is logged in the token loop.
// Thread-safe.

#include <string_view>

namespace mlx_flash {

enum class LogLevel { kQuiet, kWarning, kInfo, kDebug };

// Process-wide; set once by the command line before threads start.
void set_log_level(LogLevel level);
LogLevel log_level();

void log_warning(std::string_view message);  // "warning: ..."
void log_info(std::string_view message);
void log_debug(std::string_view message);

}  // namespace mlx_flash
