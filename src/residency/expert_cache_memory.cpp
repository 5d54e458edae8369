// SPDX-License-Identifier: MIT

// What of ExpertCache decides who stays in memory.

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "residency/expert_cache.h"

namespace mlx_flash {
namespace {

constexpr float kNowhere = std::numeric_limits<float>::infinity();
constexpr uint32_t kAnyClass = UINT32_MAX;

// A resident is worth its chance of use in each of about this many tokens to
// come, and in the rest of this one if its layer is still ahead.
constexpr float kHorizonTokens = 1;

// What an early look at a router is worth: it is right in 70 to 90 % of cases,
// for one token.
constexpr float kAheadChance = 0.5f;

// The window: enough reads for the disk, a small share of the budget.
constexpr uint64_t kWindowBytes = uint64_t{16} << 20;
constexpr uint64_t kWindowShare = 32;

}  // namespace

// A slot for the piece, taken from a resident if need be; kNone if the piece
// has to wait for one.
uint32_t ExpertCache::place(SlabId slab, uint32_t index, bool ahead) {
  const uint32_t layer = schedule_.layer_of(slab);
  const uint32_t memory_class = schedule_.class_of(layer, index);
  float score = frequency_.scores(layer)[schedule_.expert_of(slab)];
  if (ahead && frequency_.policy() == ExpertPolicy::kFrequency) {
    score = std::max(score, kAheadChance);
  }
  PieceInfo& piece = info(slab, index);
  for (;;) {
    const uint32_t slot = slots_.take(memory_class);
    if (slot != ExpertSlots::kNone) return slot;
    Victim victim = find_victim(memory_class);
    if (victim.slab == kNone || victim.rank > score) {
      victim = find_victim(kAnyClass);
    }
    const bool costly = victim.slab != kNone && victim.rank > score;
    if (costly && window_ >= window_max_ && !forced_) return kNone;
    if (victim.slab == kNone) {
      leave_window(piece);
      return forced_ && !ahead ? place_by_force(memory_class) : kNone;
    }
    if (costly && !piece.costly) {
      piece.costly = true;
      ++window_;
    }
    drop(victim.slab, victim.index);
  }
}

// Takes what this round needs last: it is read once more when its turn comes.
uint32_t ExpertCache::place_by_force(uint32_t memory_class) {
  for (size_t i = entries_.size(); i > first_open_; --i) {
    const Entry& entry = entries_[i - 1];
    for (uint32_t p = entry.pieces; p > entry.next; --p) {
      if (info(entry.slab, p - 1).state != State::kResident) continue;
      drop(entry.slab, p - 1);
      const uint32_t slot = slots_.take(memory_class);
      if (slot == ExpertSlots::kNone) continue;
      return slot;
    }
  }
  return kNone;
}

// The next token comes to the layer just passed last of all.
float ExpertCache::layer_factor(uint32_t layer) const {
  if (frequency_.policy() == ExpertPolicy::kRecency) return 1;
  const auto layers = static_cast<uint32_t>(first_slab_.size() - 1);
  const uint32_t now = layer_ == kNone ? 0 : layer_;
  const uint32_t ahead =
      layer == now ? layers : (layer + layers - now) % layers;
  const float distance = static_cast<float>(ahead) / static_cast<float>(layers);
  return (kHorizonTokens + 1 - distance) / kHorizonTokens;
}

ExpertCache::Victim ExpertCache::find_victim(uint32_t memory_class) const {
  Victim best;
  best.rank = kNowhere;
  for (uint32_t layer = 0; layer + 1 < first_slab_.size(); ++layer) {
    const float factor = layer_factor(layer);
    const SlabId end = first_slab_[layer + 1];
    for (SlabId slab = first_slab_[layer]; slab < end; ++slab) {
      if (!(rank_[slab] * factor < best.rank)) continue;
      const uint32_t index = evictable_piece(slab, memory_class);
      if (index == kNone) continue;
      best = {slab, index, rank_[slab] * factor};
    }
  }
  return best;
}

uint32_t ExpertCache::evictable_piece(SlabId slab,
                                      uint32_t memory_class) const {
  const uint32_t layer = schedule_.layer_of(slab);
  for (uint32_t i = schedule_.pieces_of(layer); i > 0; --i) {
    const uint32_t index = i - 1;
    if (info(slab, index).state != State::kResident) continue;
    if (memory_class != kAnyClass &&
        schedule_.class_of(layer, index) != memory_class) {
      continue;
    }
    if (!needed(slab, index) && !held(slab, index)) return index;
  }
  return kNone;
}

void ExpertCache::drop(SlabId slab, uint32_t index) {
  PieceInfo& piece = info(slab, index);
  FLASH_CHECK(piece.state == State::kResident);
  piece.state = State::kAbsent;
  leave_window(piece);
  slots_.give(piece.slot);
  piece.slot = kNone;
  set_resident(slab, -1);
  ++stats_.evictions;
  if (needed(slab, index)) unread_ = 0;
}

void ExpertCache::set_resident(SlabId slab, int change) {
  resident_[slab] = static_cast<uint16_t>(resident_[slab] + change);
  const uint32_t layer = schedule_.layer_of(slab);
  rank_[slab] = resident_[slab] == 0
                    ? kNowhere
                    : frequency_.scores(layer)[schedule_.expert_of(slab)];
}

void ExpertCache::set_budget(uint64_t bytes) {
  FLASH_CHECK(layer_ == kNone);
  slots_.set_budget(bytes);
  while (slots_.over()) {
    const Victim victim = find_victim(kAnyClass);
    if (victim.slab == kNone) break;  // the rest is on its way
    drop(victim.slab, victim.index);
  }
  const uint64_t slot = std::max<uint64_t>(1, slots_.slot_bytes_max());
  const uint64_t enough = std::max<uint64_t>(2, kWindowBytes / slot);
  window_max_ = static_cast<uint32_t>(
      std::max<uint64_t>(1, std::min(enough, bytes / slot / kWindowShare)));
}

void ExpertCache::clear() {
  FLASH_CHECK(under_way_ == 0 && layer_ == kNone);
  for (SlabId slab = 0; slab < resident_.size(); ++slab) {
    for (uint32_t i = 0; i < pieces_of(slab); ++i) {
      if (info(slab, i).state == State::kResident) drop(slab, i);
    }
  }
  slots_.clear();
}

void ExpertCache::check_invariants() const {
  uint64_t memory = 0;
  uint32_t reading = 0;
  uint32_t costly = 0;
  for (SlabId slab = 0; slab < resident_.size(); ++slab) {
    uint32_t resident = 0;
    const uint32_t layer = schedule_.layer_of(slab);
    for (uint32_t i = 0; i < pieces_of(slab); ++i) {
      const PieceInfo& piece = info(slab, i);
      FLASH_CHECK((piece.slot == kNone) == (piece.state == State::kAbsent));
      FLASH_CHECK((piece.read != nullptr) == (piece.state == State::kReading));
      if (piece.state == State::kResident) ++resident;
      if (piece.state == State::kReading) {
        ++reading;
        FLASH_CHECK(piece.read->slab == slab && piece.read->index == i &&
                    piece.read->left > 0);
      }
      if (piece.costly) ++costly;
      if (piece.state == State::kAbsent) continue;
      memory += slots_.slot_bytes(schedule_.class_of(layer, i));
    }
    FLASH_CHECK(resident == resident_[slab]);
    FLASH_CHECK((rank_[slab] == kNowhere) == (resident == 0));
  }
  FLASH_CHECK(reading == under_way_ && costly == window_);
  FLASH_CHECK(ahead_under_way_ <= under_way_);
  FLASH_CHECK(under_way_ + free_reads_.size() == reads_.size());
  FLASH_CHECK(memory <= slots_.committed_bytes());
  FLASH_CHECK(!held_ ||
              info(held_slab_, held_index_).state == State::kResident);
}

}  // namespace mlx_flash
