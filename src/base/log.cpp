// SPDX-License-Identifier: MIT
#include "base/log.h"

#include <atomic>
#include <cstdio>
#include <string>

namespace mlx_flash {
namespace {

// The one piece of process-wide state: what goes to the process's stderr.
std::atomic<LogLevel>& level_cell() {
  static std::atomic<LogLevel> level{LogLevel::kWarning};
  return level;
}

void write(LogLevel level, const char* prefix, std::string_view message) {
  if (level > level_cell().load(std::memory_order_relaxed)) return;
  // One write per line, so that lines of two threads do not mix.
  std::string line = prefix;
  line += message;
  line += '\n';
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace

void set_log_level(LogLevel level) {
  level_cell().store(level);
}
LogLevel log_level() {
  return level_cell().load();
}

void log_warning(std::string_view message) {
  write(LogLevel::kWarning, "warning: ", message);
}
void log_info(std::string_view message) {
  write(LogLevel::kInfo, "", message);
}
void log_debug(std::string_view message) {
  write(LogLevel::kDebug, "debug: ", message);
}

}  // namespace mlx_flash
