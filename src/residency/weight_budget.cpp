// SPDX-License-Identifier: MIT
#include "residency/weight_budget.h"

#include <algorithm>
#include <utility>

namespace mlx_flash {

WeightBudget::WeightBudget(const Plan& plan,
                           uint64_t page_bytes,
                           const Schedule& schedule,
                           TileStream& tiles,
                           const ExpertSchedule* expert_schedule,
                           CachedExperts* experts)
    : page_bytes_(page_bytes),
      schedule_(schedule),
      tiles_(tiles),
      expert_schedule_(expert_schedule),
      experts_(experts),
      bytes_(plan.pinned_slot_bytes + plan.expert_bytes),
      expert_bytes_(plan.expert_bytes),
      pinned_(plan.pinned) {
  if (experts_ != nullptr) {
    bytes_min_ = expert_memory_min(*expert_schedule_, page_bytes_);
  }
}

uint64_t WeightBudget::promised_bytes() const {
  if (experts_ == nullptr) return 0;
  // Reads under way may hold more than a share that has just shrunk.
  return expert_bytes_ - std::min(expert_bytes_, experts_->resident_bytes());
}

Status WeightBudget::move(uint64_t bytes) {
  bytes_ = bytes;
  WeightShare share =
      share_weights(schedule_, expert_schedule_, bytes, page_bytes_);
  if (experts_ != nullptr && share.expert_bytes < expert_bytes_) {
    experts_->set_budget(share.expert_bytes);
  }
  Status moved;
  if (share.pinned != pinned_) moved = tiles_.set_pins(share.pinned);
  if (experts_ != nullptr && share.expert_bytes > expert_bytes_) {
    experts_->set_budget(share.expert_bytes);
  }
  pinned_ = std::move(share.pinned);
  expert_bytes_ = share.expert_bytes;
  return moved;
}

}  // namespace mlx_flash
