// SPDX-License-Identifier: MIT
#include "residency/expert_slots.h"

#include <algorithm>

#include "base/check.h"

namespace mlx_flash {

uint64_t ExpertSlots::address_bytes(const ExpertSchedule& schedule,
                                    uint64_t page_bytes) {
  uint64_t bytes = 0;
  for (const auto& c : schedule.classes(page_bytes)) {
    bytes += c.pieces * c.slot_bytes;
  }
  return bytes;
}

Result<ExpertSlots> ExpertSlots::create(const ExpertSchedule& schedule,
                                        Arena& arena,
                                        uint64_t budget_bytes) {
  ExpertSlots slots(arena);
  slots.budget_ = budget_bytes;
  uint32_t first = 0;
  for (const auto& c : schedule.classes(arena.page_bytes())) {
    Class& made = slots.classes_.emplace_back();
    FLASH_ASSIGN_OR_RETURN(made.begin, arena.reserve(c.pieces * c.slot_bytes));
    made.slot_bytes = c.slot_bytes;
    made.first_slot = first;
    made.count = c.pieces;
    made.free.reserve(c.pieces);
    made.blank.reserve(c.pieces);
    // From the beginning of the region on: few page tables.
    for (uint32_t i = c.pieces; i > 0; --i) made.blank.push_back(first + i - 1);
    first += c.pieces;
  }
  return slots;
}

uint32_t ExpertSlots::take(uint32_t memory_class) {
  Class& c = classes_[memory_class];
  if (over()) trim();
  if (c.free.empty() && !commit(c)) return kNone;
  const uint32_t slot = c.free.back();
  c.free.pop_back();
  ++c.taken;
  return slot;
}

void ExpertSlots::give(uint32_t slot) {
  Class& c = classes_[class_of(slot)];
  FLASH_CHECK(c.taken > 0);
  --c.taken;
  c.free.push_back(slot);
  if (over()) trim();
}

bool ExpertSlots::commit(Class& which) {
  if (which.blank.empty()) return false;
  for (Class& other : classes_) {
    while (committed_ + which.slot_bytes > budget_ && !other.free.empty() &&
           &other != &which) {
      decommit(other);
    }
  }
  if (committed_ + which.slot_bytes > budget_) return false;
  const uint32_t slot = which.blank.back();
  if (!arena_->commit(address(slot), which.slot_bytes).ok()) return false;
  which.blank.pop_back();
  which.free.push_back(slot);
  committed_ += which.slot_bytes;
  return true;
}

void ExpertSlots::decommit(Class& which) {
  const uint32_t slot = which.free.back();
  which.free.pop_back();
  which.blank.push_back(slot);
  arena_->decommit(address(slot), which.slot_bytes);
  committed_ -= which.slot_bytes;
}

void ExpertSlots::trim() {
  for (Class& c : classes_) {
    while (over() && !c.free.empty()) decommit(c);
  }
}

void ExpertSlots::set_budget(uint64_t bytes) {
  budget_ = bytes;
  trim();
}

void ExpertSlots::clear() {
  for (Class& c : classes_) {
    FLASH_CHECK(c.taken == 0);
    while (!c.free.empty()) decommit(c);
  }
}

uint32_t ExpertSlots::class_of(uint32_t slot) const {
  const auto after =
      std::find_if(classes_.begin(), classes_.end(), [&](const Class& c) {
        return slot < c.first_slot + c.count;
      });
  FLASH_CHECK(after != classes_.end());
  return static_cast<uint32_t>(after - classes_.begin());
}

std::byte* ExpertSlots::address(uint32_t slot) const {
  const Class& c = classes_[class_of(slot)];
  return c.begin + (slot - c.first_slot) * c.slot_bytes;
}

uint64_t ExpertSlots::slot_bytes_max() const {
  uint64_t bytes = 0;
  for (const Class& c : classes_) bytes = std::max(bytes, c.slot_bytes);
  return bytes;
}

}  // namespace mlx_flash
