// SPDX-License-Identifier: MIT
#pragma once

// Memory for pieces of experts: slots of a few sizes, each class in a region
// of its own that has addresses for all pieces of the class.
//
// A slot is committed when the budget has room for it and then used again and
// again: a piece that takes another's place costs no page fault. What the
// budget loses goes back to the system slot by slot.
//
// Thread-compatible. Allocates only when made.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/status.h"
#include "residency/arena.h"
#include "residency/expert_schedule.h"

namespace mlx_flash {

class ExpertSlots {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  // What is kept of each piece: its place in both lists of slots.
  static constexpr uint64_t kPieceBytes = 2 * sizeof(uint32_t);

  static uint64_t address_bytes(const ExpertSchedule& schedule,
                                uint64_t page_bytes);
  static Result<ExpertSlots> create(const ExpertSchedule& schedule,
                                    Arena& arena,
                                    uint64_t budget_bytes);

  // A slot of the class, or kNone: none is free and the budget has no room for
  // another, even if free slots of other classes are given up.
  uint32_t take(uint32_t memory_class);
  void give(uint32_t slot);

  uint32_t class_of(uint32_t slot) const;
  std::byte* address(uint32_t slot) const;
  uint64_t slot_bytes(uint32_t memory_class) const {
    return classes_[memory_class].slot_bytes;
  }
  uint64_t slot_bytes_max() const;

  // Free slots go at once, until what is committed fits; the rest is over()
  // until more are given back.
  void set_budget(uint64_t bytes);
  uint64_t budget_bytes() const { return budget_; }
  uint64_t committed_bytes() const { return committed_; }
  bool over() const { return committed_ > budget_; }
  // Gives all memory back. REQUIRES: no slot is taken.
  void clear();

 private:
  struct Class {
    std::byte* begin = nullptr;
    uint64_t slot_bytes = 0;
    uint32_t first_slot = 0;
    uint32_t count = 0;
    uint32_t taken = 0;
    std::vector<uint32_t> free;   // committed; the last is taken first
    std::vector<uint32_t> blank;  // not committed
  };

  explicit ExpertSlots(Arena& arena) : arena_(&arena) {}
  bool commit(Class& which);
  void decommit(Class& which);
  void trim();

  Arena* arena_;
  std::vector<Class> classes_;
  uint64_t budget_ = 0;
  uint64_t committed_ = 0;
};

}  // namespace mlx_flash
