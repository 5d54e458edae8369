// SPDX-License-Identifier: MIT
#pragma once

// What one forward computes.

#include <cstdint>

namespace mlx_flash {

class SessionState;

struct BatchRow {
  SessionState* session = nullptr;
  uint32_t position = 0;
  uint32_t token = 0;
  bool want_logits = false;
};

}  // namespace mlx_flash
