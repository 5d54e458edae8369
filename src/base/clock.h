// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>

namespace mlx_flash {

// Monotonic seconds since some fixed point. State machines take the time as an
// argument; only the threads around them ask the clock.
inline double now_seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace mlx_flash
