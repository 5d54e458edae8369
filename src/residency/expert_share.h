// SPDX-License-Identifier: MIT
#pragma once

// How the memory for weights is shared between tiles, which every token uses,
// and experts, of which it uses some; and what hit rate to expect of it.
//
// Pure functions.

#include <cstdint>
#include <vector>

#include "residency/expert_frequency.h"
#include "residency/expert_schedule.h"
#include "residency/schedule.h"

namespace mlx_flash {

struct WeightShare {
  std::vector<bool> pinned;   // by TileId
  uint64_t pinned_bytes = 0;  // their memory
  uint64_t expert_bytes = 0;  // the budget of the expert cache
};

// A pinned tile saves its bytes in every token, an expert only when it is
// used. So: the least that experts work with, then tiles of every pass, then
// experts, and last the tiles of what is read by the row. `experts` null: none.
WeightShare share_weights(const Schedule& schedule,
                          const ExpertSchedule* experts,
                          uint64_t bytes,
                          uint64_t page_bytes);

// One piece in use, one being read.
uint64_t expert_memory_min(const ExpertSchedule& experts, uint64_t page_bytes);
// Every piece in memory.
uint64_t expert_memory_all(const ExpertSchedule& experts, uint64_t page_bytes);

// What the cache keeps of them beside their memory, whatever its budget.
uint64_t expert_table_bytes(const ExpertSchedule& experts);

// Of the bytes that tokens need, how many to expect in memory if a `share` of
// all experts' bytes fits. From measured routings of models with as many active
// among as many experts; or from what was learnt of this one.
double expected_hit_rate(const ExpertSchedule& experts, double share);
double learnt_hit_rate(const ExpertSchedule& experts,
                       const ExpertFrequency& learnt,
                       double share);

}  // namespace mlx_flash
