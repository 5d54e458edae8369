// SPDX-License-Identifier: MIT
#include "pass_memory.h"

#include <algorithm>

#include "base/memory.h"

namespace mlx_flash::python {
namespace {

// What the allocator keeps, between what was planned and the budget.
constexpr uint64_t kSlackBytes = 8'000'000;
// Weights yield this far below the budget: what may come between two looks.
constexpr uint64_t kGuardBytes = 4'000'000;
// They yield so much at once: each time re-plans all tiles.
constexpr uint64_t kYieldBytesMin = 4'000'000;

}  // namespace

PassMemory::PassMemory(const Budget& budget,
                       const Plan& plan,
                       Arena& arena,
                       WeightBudget& weights,
                       uint64_t weights_bytes_max,
                       uint64_t tables_bytes)
    : budget_(budget),
      plan_(plan),
      arena_(arena),
      weights_(weights),
      weights_bytes_max_(weights_bytes_max),
      tables_bytes_(tables_bytes) {}

uint64_t PassMemory::outside(uint64_t resident) const {
  // Committed memory that was never touched is not resident.
  return resident - std::min(resident, arena_.committed_bytes());
}

// Gives weights the memory that caches and activations leave, as the last pass
// showed it.
Status PassMemory::begin(uint32_t rows, bool settled) {
  const uint64_t expected = begin_bytes_ + budget_.decode;
  if (rows_ > 1 && most_bytes_ > expected) {
    const uint64_t grown = most_bytes_ - expected;
    budget_.per_row = std::max(budget_.per_row, grown / rows_);
  }
  const auto process = process_memory();
  rows_ = rows;
  begin_bytes_ = most_bytes_ =
      process.ok() ? outside(process->resident_bytes) : budget_.runtime;
  if (budget_.fixed) return Status();
  const uint64_t base =
      settled ? begin_bytes_ + kSlackBytes
              : std::max(begin_bytes_, budget_.runtime + tables_bytes_);
  const uint64_t needed =
      base + budget_.decode + (rows - 1) * budget_.per_row + plan_.ring_bytes;
  uint64_t room = budget_.ram > needed ? budget_.ram - needed : 0;
  room -= std::min(room, page_table_bytes(room, arena_.page_bytes()));
  return move(room);
}

// Each move re-plans all tiles: not for less than a sixteenth upwards, and
// downwards with something to spare for the passes to come.
Status PassMemory::move(uint64_t room) {
  const uint64_t least = weights_.bytes_min();
  const uint64_t now = weights_.bytes();
  room = std::clamp(room, least, std::max(least, weights_bytes_max_));
  if (room < now) {
    room = std::max(least, room - room / 64);
  } else if (room < now + now / 16 + (uint64_t{8} << 20) &&
             room < weights_bytes_max_) {
    return Status();
  }
  return room == now ? Status() : weights_.move(room);
}

bool PassMemory::look_now_and_then(uint64_t to_write) {
  constexpr uint32_t kEvery = 8;  // a look costs some 20 us
  if (rows_ <= 1 && ++operations_ % kEvery != 0) return true;
  return look(to_write);
}

bool PassMemory::look(uint64_t to_write) {
  const auto process = process_memory();
  if (!process.ok()) return true;
  const uint64_t resident = process->resident_bytes;
  peak_bytes_ = std::max(peak_bytes_, resident);
  most_bytes_ = std::max(most_bytes_, outside(resident));
  if (budget_.fixed || rows_ <= 1) return true;
  const uint64_t expected = resident + to_write;
  return expected + kGuardBytes <= budget_.ram || yield(expected);
}

bool PassMemory::yield(uint64_t expected) {
  const uint64_t least = weights_.bytes_min();
  const uint64_t now = weights_.bytes();
  if (now > least) {
    const uint64_t wanted = std::max(
        expected + kGuardBytes - budget_.ram + now / 16, kYieldBytesMin);
    return weights_.move(std::max(least, now - std::min(now, wanted))).ok();
  }
  // Others may hold the memory: this forward could not have had it anyway.
  const bool began_within =
      begin_bytes_ + plan_.ring_bytes + least <= budget_.ram;
  return expected <= budget_.ram || !began_within;
}

}  // namespace mlx_flash::python
