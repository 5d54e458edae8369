// SPDX-License-Identifier: MIT
#pragma once

// Keeps the process within its budget, forward by forward.
//
// Nothing here knows the model: what its caches and arrays take is seen from
// the memory that the process holds besides the weights. At the begin of each
// forward weights get what is left; while the tokens of a prompt are computed
// they give it back as soon as the budget is reached. When they have nothing
// left to give, the forward does not fit.
//
// Thread-compatible: under the Store's mutex, between two of its operations.

#include <cstdint>

#include "base/status.h"
#include "residency/arena.h"
#include "residency/plan.h"
#include "residency/weight_budget.h"
#include "store_types.h"

namespace mlx_flash::python {

class PassMemory {
 public:
  // `weights_bytes_max`: more has no use. `tables_bytes`: what row tables will
  // come to hold. All but the numbers outlive it.
  PassMemory(const Budget& budget,
             const Plan& plan,
             Arena& arena,
             WeightBudget& weights,
             uint64_t weights_bytes_max,
             uint64_t tables_bytes);

  // A forward of so many tokens begins. `settled`: code and caches of MLX and
  // Python have been touched by earlier ones.
  Status begin(uint32_t rows, bool settled);

  // Looks at what the process holds, and is about to write. Within a prompt's
  // forward weights yield; false: they have, and it is still more than the
  // budget.
  bool look(uint64_t to_write = 0);
  // The same where looking each time would cost too much: before an operation.
  bool look_now_and_then(uint64_t to_write);

  // The forward under way, and what was held besides weights at its begin.
  uint32_t rows() const { return rows_; }
  uint64_t begin_bytes() const { return begin_bytes_; }
  uint64_t peak_bytes() const { return peak_bytes_; }

 private:
  uint64_t outside(uint64_t resident) const;
  Status move(uint64_t room);
  bool yield(uint64_t expected);

  Budget budget_;  // its per_row is learnt
  const Plan& plan_;
  Arena& arena_;
  WeightBudget& weights_;
  uint64_t weights_bytes_max_;
  uint64_t tables_bytes_;

  uint32_t rows_ = 0;         // of the forward under way
  uint64_t begin_bytes_ = 0;  // outside the arena, at its begin
  uint64_t most_bytes_ = 0;   // and at most, since
  uint64_t peak_bytes_ = 0;   // of the process, as seen
  uint32_t operations_ = 0;
};

}  // namespace mlx_flash::python
