// SPDX-License-Identifier: MIT
#pragma once

// What one forward computes.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/ranking.h"

namespace mlx_flash {

class SessionState;

// The largest logits of a row, best first, equals by id; in fast they are found
// while the head's tiles come out. Stock leaves the list empty.
struct BestTokens {
  size_t most = 0;  // at most so many; at most kernels::kRankedMost
  std::vector<kernels::Ranked> list;
};

struct BatchRow {
  SessionState* session = nullptr;
  uint32_t position = 0;
  uint32_t token = 0;
  bool want_logits = false;
  BestTokens* best = nullptr;  // to be filled before the row's logits are shown
};

}  // namespace mlx_flash
