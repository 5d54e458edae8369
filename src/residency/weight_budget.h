// SPDX-License-Identifier: MIT
#pragma once

// The share of the arena that weights have, moved between pinned tiles and
// experts while running. Whoever needs memory (KV, activations) takes it from
// here: experts yield first, down to the least they work with.
//
// Thread-compatible; used between forwards.

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "residency/cached_experts.h"
#include "residency/expert_share.h"
#include "residency/plan.h"
#include "residency/tile_stream.h"

namespace mlx_flash {

class WeightBudget {
 public:
  // As planned, and as `tiles` and `experts` were made. `experts` null: none.
  // All arguments but the plan outlive the budget.
  WeightBudget(const Plan& plan,
               uint64_t page_bytes,
               const Schedule& schedule,
               TileStream& tiles,
               const ExpertSchedule* expert_schedule,
               CachedExperts* experts);

  uint64_t bytes() const { return bytes_; }
  // All tiles may stream; experts need a place.
  uint64_t bytes_min() const { return bytes_min_; }
  // Of bytes(), not taken from the arena yet: experts take memory as they come.
  uint64_t promised_bytes() const;

  // What must shrink goes before anything grows.
  Status move(uint64_t bytes);

 private:
  uint64_t page_bytes_;
  const Schedule& schedule_;
  TileStream& tiles_;
  const ExpertSchedule* expert_schedule_;
  CachedExperts* experts_;
  uint64_t bytes_ = 0;
  uint64_t bytes_min_ = 0;
  uint64_t expert_bytes_ = 0;  // of bytes_
  std::vector<bool> pinned_;   // by TileId
};

}  // namespace mlx_flash
