// SPDX-License-Identifier: MIT
#include "residency/tile_stream_core.h"

#include <algorithm>

#include "base/check.h"

namespace mlx_flash {

TileStreamCore::TileStreamCore(const Schedule& schedule,
                               std::span<const File> files,
                               Memory memory)
    : schedule_(schedule), files_(files), memory_(std::move(memory)) {
  FLASH_CHECK(memory_.ring_slots >= 2 && memory_.home_reads_max >= 1);
  FLASH_CHECK(memory_.homes.size() == schedule.tiles().size());
  tiles_.resize(schedule.tiles().size());
  slots_.resize(memory_.ring_slots);
  free_slots_.resize(memory_.ring_slots);
  for (uint32_t i = 0; i < memory_.ring_slots; ++i) free_slots_[i] = i;
  free_count_ = memory_.ring_slots;
  slot_reads_.resize(memory_.ring_slots);
  home_reads_.resize(memory_.home_reads_max + 1);
  cancels_.reserve(slot_reads_.size() + home_reads_.size());
  predicted_ = schedule.order();
  record_.reserve(predicted_.size() + 64);
  index_prediction();
}

// --- The consumer ---------------------------------------------------------

TileStreamCore::Answer TileStreamCore::want(TileId tile,
                                            TileStream::View* view,
                                            Status* status) {
  FLASH_CHECK(tile < tiles_.size());
  TileInfo& info = tiles_[tile];
  if (demand_ != tile) {
    FLASH_CHECK(demand_ == kNone);
    demand_ = tile;
    demand_failed_ = false;
    demand_started_ = false;
  }
  if (info.state == State::kResident) {
    take(tile);
    fill_view(tile, view);
    give_up();
    return Answer::kReady;
  }
  if (demand_failed_) {
    *status = std::move(demand_status_);
    give_up();
    return Answer::kFailed;
  }
  if (info.state == State::kReading && !info.read->promoted) {
    info.read->promoted = true;
    promotion_ = info.read;
  }
  return Answer::kWait;
}

void TileStreamCore::give_up() {
  demand_ = kNone;
  demand_failed_ = false;
  demand_status_ = Status();
}

void TileStreamCore::take(TileId tile) {
  TileInfo& info = tiles_[tile];
  const bool expected =
      consumer_ < predicted_.size() && predicted_[consumer_] == tile;
  if (demand_started_ && !expected) ++stats_.misses;
  if (info.holds++ == 0) ++held_;
  ++info.uses;
  if (info.place == kHome) {
    ++stats_.tiles_pinned;
  } else {
    ++stats_.tiles_streamed;
    count_slot_use(slots_[info.place]);
  }
  const size_t record_max = 4 * tiles_.size() + 64;
  if (record_.size() < record_max) {
    record_.push_back(tile);
  } else {
    record_full_ = true;
  }
  step_consumer(tile);
}

void TileStreamCore::count_slot_use(Slot& slot) {
  if (++slot.uses != stats_.ring_wraps + 1) return;
  if (++slots_beyond_ < slots_.size()) return;
  ++stats_.ring_wraps;
  slots_beyond_ = 0;
  for (const Slot& s : slots_) {
    if (s.uses > stats_.ring_wraps) ++slots_beyond_;
  }
}

// Independent operations change places, and a pass may leave some out: a tile
// that is ahead, within what has been read ahead, moves the consumer there.
// Anything further off only does so if the next tile confirms it.
void TileStreamCore::step_consumer(TileId tile) {
  const uint64_t length = predicted_.size();
  const auto begin = where_.begin() + where_begin_[tile];
  const auto end = where_.begin() + where_begin_[tile + 1];
  if (begin == end) return;
  const auto ahead = std::lower_bound(begin, end, consumer_);
  const uint64_t found = ahead == end ? kNever : *ahead;
  if (found == consumer_ || found < std::min(reader_, length)) {
    consumer_ = found + 1;
  } else if (resync_ < length && predicted_[resync_] == tile) {
    consumer_ = resync_ + 1;
    reader_ = consumer_;
  } else {
    resync_ = (found == kNever ? *begin : found) + 1;
    return;
  }
  resync_ = kNever;
  reader_ = std::max(reader_, consumer_);
}

void TileStreamCore::release(TileId tile) {
  FLASH_CHECK(tile < tiles_.size());
  TileInfo& info = tiles_[tile];
  FLASH_CHECK(info.holds > 0);
  if (--info.holds > 0) return;
  --held_;
  if (info.place == kHome) return;
  // The reader has passed the tile's next use: it counts on this copy.
  if (!info.pinned && next_use(tile) < reader_) return;
  drop(tile);
}

bool TileStreamCore::pass_was_whole() const {
  if (record_full_ || record_.empty()) return false;
  // The beginning of what was predicted: a pass that was interrupted, or one
  // that wanted no logits. What comes next is better predicted as before.
  const bool beginning =
      record_.size() <= predicted_.size() &&
      std::equal(record_.begin(), record_.end(), predicted_.begin());
  return !beginning;
}

bool TileStreamCore::end_pass() {
  ++stats_.passes;
  const bool learn = pass_was_whole();
  if (learn) {
    std::swap(predicted_, record_);
    index_prediction();
    record_.reserve(predicted_.size() + 64);
  }
  record_.clear();
  record_full_ = false;
  for (TileInfo& info : tiles_) info.uses = 0;
  consumer_ = 0;
  reader_ = 0;
  resync_ = kNever;
  return learn;
}

void TileStreamCore::index_prediction() {
  where_begin_.assign(tiles_.size() + 1, 0);
  for (const TileId tile : predicted_) ++where_begin_[tile + 1];
  for (size_t i = 0; i < tiles_.size(); ++i) {
    where_begin_[i + 1] += where_begin_[i];
  }
  where_.resize(predicted_.size());
  std::vector<uint32_t> next(where_begin_.begin(), where_begin_.end() - 1);
  for (uint32_t position = 0; position < predicted_.size(); ++position) {
    where_[next[predicted_[position]]++] = position;
  }
}

bool TileStreamCore::used_up(TileId tile) const {
  const uint32_t count = where_begin_[tile + 1] - where_begin_[tile];
  return tiles_[tile].uses >= count;
}

uint64_t TileStreamCore::next_use(TileId tile) const {
  const auto begin = where_.begin() + where_begin_[tile];
  const auto end = where_.begin() + where_begin_[tile + 1];
  if (begin == end) return kNever;
  if (!used_up(tile)) {
    const auto ahead = std::lower_bound(begin, end, consumer_);
    if (ahead != end) return *ahead;
    // Just overtaken by another: it is likely to come now.
    if (*(end - 1) + slots_.size() >= consumer_) return consumer_;
  }
  return *begin + predicted_.size();
}

// --- Reads ----------------------------------------------------------------

TileStreamCore::Read* TileStreamCore::next_read() {
  return demand_unread() ? read_for_demand() : read_ahead();
}

TileStreamCore::Read* TileStreamCore::read_for_demand() {
  if (tiles_[demand_].pinned) {
    Read* read = free_home_read(memory_.home_reads_max + 1);
    if (read == nullptr) return nullptr;
    demand_started_ = true;
    return start(*read, demand_, kHome, ReadClass::kNeededNow);
  }
  uint32_t slot = take_free_slot();
  if (slot == kNone && discards_ == 0) {
    const uint32_t victim = find_victim(0, false);
    if (victim == kNone) return nullptr;  // all are held
    const TileId tile = slots_[victim].tile;
    reader_ = std::max(consumer_, std::min(reader_, next_use(tile)));
    drop(tile);
    slot = take_free_slot();
  }
  if (slot == kNone) return nullptr;  // one comes free when its read is back
  demand_started_ = true;
  return start(slot_reads_[slot], demand_, slot, ReadClass::kNeededNow);
}

TileStreamCore::Read* TileStreamCore::read_ahead() {
  const uint64_t length = predicted_.size();
  for (; reader_ < consumer_ + length; ++reader_) {
    const TileId tile = predicted_[reader_ % length];
    const TileInfo& info = tiles_[tile];
    if (info.state != State::kAbsent) continue;
    if (reader_ < length && used_up(tile)) continue;
    if (info.pinned) {
      Read* read = free_home_read(memory_.home_reads_max);
      if (read == nullptr) return nullptr;
      ++reader_;
      return start(*read, tile, kHome, ReadClass::kAhead);
    }
    uint32_t slot = take_free_slot();
    if (slot == kNone) {
      // A tile that was left out, or belongs to an order of the past.
      const uint32_t victim = find_victim(reader_ + 1, true);
      if (victim == kNone) return nullptr;
      drop(slots_[victim].tile);
      slot = take_free_slot();
    }
    ++reader_;
    return start(slot_reads_[slot], tile, slot, ReadClass::kAhead);
  }
  return nullptr;
}

TileStreamCore::Read* TileStreamCore::free_home_read(uint32_t limit) {
  uint32_t busy = 0;
  Read* free = nullptr;
  for (Read& read : home_reads_) {
    if (read.parts_left > 0) {
      ++busy;
    } else if (free == nullptr) {
      free = &read;
    }
  }
  return busy < limit ? free : nullptr;
}

TileStreamCore::Read* TileStreamCore::start(Read& read,
                                            TileId tile,
                                            uint32_t slot,
                                            ReadClass read_class) {
  FLASH_CHECK(read.parts_left == 0 && tiles_[tile].state == State::kAbsent);
  const Tile& what = schedule_.tiles()[tile];
  TileInfo& info = tiles_[tile];
  info.state = State::kReading;
  info.place = slot;
  info.read = &read;
  if (slot != kHome) slots_[slot].tile = tile;
  const bool in_ring = slot != kHome;
  const size_t record =
      in_ring ? static_cast<size_t>(&read - &slot_reads_[0])
              : slots_.size() + static_cast<size_t>(&read - &home_reads_[0]);
  read.tile = tile;
  read.slot = slot;
  read.part_count = what.part_count;
  read.parts_left = what.part_count;
  read.discard = false;
  read.promoted = read_class == ReadClass::kNeededNow;
  read.status = Status();
  std::byte* to = place_of(tile);
  for (uint32_t i = 0; i < what.part_count; ++i) {
    const TilePart& part = what.parts[i];
    ReadRequest& r = read.parts[i];
    r.file = &files_[part.file];
    r.offset = part.aligned_offset;
    r.buffer = to + part.home_offset;
    r.bytes = static_cast<uint32_t>(part.aligned_bytes);
    r.bytes_min =
        static_cast<uint32_t>(part.offset + part.bytes - part.aligned_offset);
    r.read_class = read_class;
    r.tag = record;
  }
  return &read;
}

void TileStreamCore::on_completion(ReadRequest& request) {
  const size_t record = request.tag;
  Read& read = record < slots_.size() ? slot_reads_[record]
                                      : home_reads_[record - slots_.size()];
  FLASH_CHECK(read.parts_left > 0);
  stats_.bytes_read += request.done_bytes;
  if (read.status.ok() && !request.status.ok()) read.status = request.status;
  if (--read.parts_left > 0) return;
  if (promotion_ == &read) promotion_ = nullptr;
  if (read.discard) {
    --discards_;
    if (read.slot != kHome) free_slot(read.slot);
    return;
  }
  TileInfo& info = tiles_[read.tile];
  info.read = nullptr;
  if (read.status.ok()) {
    info.state = State::kResident;
    return;
  }
  // Nobody may need it: only a consumer that waits for it hears of it.
  info.state = State::kAbsent;
  info.place = kHome;
  if (read.slot != kHome) free_slot(read.slot);
  if (demand_ == read.tile) {
    demand_failed_ = true;
    demand_status_ = read.status;
  }
}

TileStreamCore::Read* TileStreamCore::next_cancel() {
  while (!cancels_.empty()) {
    Read* read = cancels_.back();
    cancels_.pop_back();
    if (read->discard && read->parts_left > 0) return read;
  }
  return nullptr;
}

TileStreamCore::Read* TileStreamCore::next_promotion() {
  return std::exchange(promotion_, nullptr);
}

// --- Memory ---------------------------------------------------------------

std::byte* TileStreamCore::place_of(TileId tile) const {
  const TileInfo& info = tiles_[tile];
  if (info.place == kHome) return memory_.homes[tile];
  return memory_.ring + uint64_t{info.place} * memory_.slot_bytes;
}

void TileStreamCore::fill_view(TileId tile, TileStream::View* view) const {
  const Tile& what = schedule_.tiles()[tile];
  const std::byte* at = place_of(tile);
  *view = {};
  view->tile = tile;
  for (uint32_t i = 0; i < what.part_count; ++i) {
    const TilePart& part = what.parts[i];
    view->part[i] = at + part.home_offset + (part.offset - part.aligned_offset);
  }
}

uint64_t TileStreamCore::bytes_ahead() const {
  uint64_t bytes = 0;
  for (const Slot& slot : slots_) {
    if (slot.state != SlotState::kUsed) continue;
    const TileInfo& info = tiles_[slot.tile];
    if (info.state != State::kResident || info.holds > 0) continue;
    bytes += schedule_.tiles()[slot.tile].slot_bytes;
  }
  return bytes;
}

bool TileStreamCore::peek_home(TileId tile, TileStream::View* view) const {
  const TileInfo& info = tiles_[tile];
  if (!info.pinned || info.state != State::kResident || info.place != kHome) {
    return false;
  }
  fill_view(tile, view);
  return true;
}

uint32_t TileStreamCore::take_free_slot() {
  if (free_count_ == 0) return kNone;
  const uint32_t slot = free_slots_[free_head_];
  free_head_ = (free_head_ + 1) % free_slots_.size();
  --free_count_;
  slots_[slot].state = SlotState::kUsed;
  return slot;
}

void TileStreamCore::free_slot(uint32_t slot) {
  FLASH_CHECK(free_count_ < free_slots_.size());
  slots_[slot].state = SlotState::kFree;
  free_slots_[(free_head_ + free_count_) % free_slots_.size()] = slot;
  ++free_count_;
}

void TileStreamCore::drop(TileId tile) {
  TileInfo& info = tiles_[tile];
  FLASH_CHECK(info.holds == 0 && info.state != State::kAbsent);
  if (info.state == State::kReading) {
    info.read->discard = true;
    ++discards_;
    cancels_.push_back(info.read);
    if (info.place != kHome) slots_[info.place].state = SlotState::kDiscarding;
  } else if (info.place != kHome) {
    free_slot(info.place);
  }
  info.state = State::kAbsent;
  info.place = kHome;
  info.read = nullptr;
}

uint32_t TileStreamCore::find_victim(uint64_t from, bool resident_only) const {
  uint32_t victim = kNone;
  uint64_t latest = 0;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].state != SlotState::kUsed) continue;
    const TileInfo& info = tiles_[slots_[i].tile];
    if (info.holds > 0) continue;
    if (resident_only && info.state != State::kResident) continue;
    const uint64_t use = next_use(slots_[i].tile);
    if (use < from || (victim != kNone && use <= latest)) continue;
    victim = i;
    latest = use;
  }
  return victim;
}

void TileStreamCore::pin(TileId tile) {
  tiles_[tile].pinned = true;
}

void TileStreamCore::unpin(TileId tile) {
  TileInfo& info = tiles_[tile];
  info.pinned = false;
  if (info.state != State::kAbsent && info.place == kHome) drop(tile);
}

void TileStreamCore::discard_all() {
  for (TileId tile = 0; tile < tiles_.size(); ++tile) {
    if (tiles_[tile].state == State::kReading) drop(tile);
  }
}

void TileStreamCore::check_invariants() const {
  uint32_t used = 0;
  uint32_t discarding = 0;
  uint32_t held = 0;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].state == SlotState::kDiscarding) ++discarding;
    if (slots_[i].state != SlotState::kUsed) continue;
    ++used;
    const TileInfo& info = tiles_[slots_[i].tile];
    FLASH_CHECK(info.state != State::kAbsent && info.place == i);
  }
  FLASH_CHECK(used + discarding + free_count_ == slots_.size());
  uint32_t in_ring = 0;
  for (const TileInfo& info : tiles_) {
    if (info.holds > 0) ++held;
    FLASH_CHECK(info.holds == 0 || info.state == State::kResident);
    FLASH_CHECK((info.read != nullptr) == (info.state == State::kReading));
    if (info.state != State::kAbsent && info.place != kHome) ++in_ring;
    if (info.state != State::kAbsent && info.place == kHome) {
      FLASH_CHECK(info.pinned);
    }
  }
  FLASH_CHECK(in_ring == used && held == held_ && discarding <= discards_);
  FLASH_CHECK(reader_ >= consumer_ && reader_ <= consumer_ + predicted_.size());
}

}  // namespace mlx_flash
