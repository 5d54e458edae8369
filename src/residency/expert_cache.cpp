// SPDX-License-Identifier: MIT
#include "residency/expert_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace mlx_flash {
namespace {

// Pieces: each is several requests, and what is needed waits for those that
// have started.
constexpr uint32_t kAheadReadsMax = 2;

constexpr float kNowhere = std::numeric_limits<float>::infinity();

std::vector<ExpertFrequency::Layer> shapes_of(const ExpertSchedule& schedule) {
  std::vector<ExpertFrequency::Layer> shapes;
  for (const ExpertLayer& layer : schedule.layers()) {
    shapes.push_back({layer.experts, layer.active});
  }
  return shapes;
}

}  // namespace

ExpertCache::ExpertCache(const ExpertSchedule& schedule,
                         std::span<const File> files,
                         ExpertSlots slots,
                         ExpertPolicy policy)
    : schedule_(schedule),
      files_(files),
      slots_(std::move(slots)),
      frequency_(shapes_of(schedule), policy),
      pieces_(schedule.pieces()),
      resident_(schedule.slabs()),
      rank_(schedule.slabs(), kNowhere),
      reads_(kReadsMax) {
  for (uint32_t l = 0; l < schedule.layers().size(); ++l) {
    first_slab_.push_back(schedule.slab(l, 0));
  }
  first_slab_.push_back(schedule.slabs());
  for (uint32_t i = kReadsMax; i > 0; --i) {
    reads_[i - 1].requests.resize(schedule.requests_max());
    free_reads_.push_back(i - 1);
  }
  entries_.reserve(schedule.experts_max());
  entry_of_.resize(schedule.experts_max(), kNone);
  ahead_wanted_.reserve(schedule.experts_max());
  ahead_read_.reserve(schedule.slabs());
  set_budget(slots_.budget_bytes());
}

uint64_t ExpertCache::table_bytes(const ExpertSchedule& schedule) {
  const uint64_t of_slab = sizeof(resident_[0]) + sizeof(rank_[0]) +
                           sizeof(ahead_read_[0]) + ExpertFrequency::kSlabBytes;
  const uint64_t of_piece = sizeof(PieceInfo) + ExpertSlots::kPieceBytes;
  const uint64_t of_expert =
      sizeof(Entry) + sizeof(entry_of_[0]) + sizeof(ahead_wanted_[0]);
  const uint64_t of_read =
      sizeof(Read) + schedule.requests_max() * sizeof(ReadRequest);
  return schedule.slabs() * of_slab + schedule.pieces() * of_piece +
         schedule.experts_max() * of_expert + kReadsMax * of_read;
}

// --- The consumer ---------------------------------------------------------

void ExpertCache::begin(uint32_t layer,
                        std::span<const uint32_t> experts,
                        std::span<const uint32_t> rows) {
  FLASH_CHECK(layer_ == kNone && layer < schedule_.layers().size());
  frequency_.use(layer, experts, rows);
  const std::span<const float> scores = frequency_.scores(layer);
  for (uint32_t e = 0; e < scores.size(); ++e) {
    const SlabId slab = first_slab_[layer] + e;
    if (resident_[slab] > 0) rank_[slab] = scores[e];
  }
  judge_ahead(layer);
  if (ahead_layer_ == layer) ahead_wanted_.clear();
  layer_ = layer;
  entries_.clear();
  first_open_ = unread_ = 0;
  failure_ = Status();
  ++stats_.rounds;
  for (const uint32_t expert : experts) {
    FLASH_CHECK(expert < scores.size() && entry_of_[expert] == kNone);
    entry_of_[expert] = static_cast<uint32_t>(entries_.size());
    const SlabId slab = first_slab_[layer] + expert;
    const uint32_t pieces = schedule_.pieces_of(layer);
    entries_.push_back({slab, 0, pieces});
    for (uint32_t i = 0; i < pieces; ++i) {
      PieceInfo& piece = info(slab, i);
      const uint64_t bytes = schedule_.piece_bytes(layer, i);
      ++stats_.pieces;
      stats_.bytes += bytes;
      if (piece.state == State::kResident) {
        ++stats_.hits;
        stats_.hit_bytes += bytes;
      } else if (piece.state == State::kReading && piece.read->ahead) {
        piece.read->ahead = false;
        --ahead_under_way_;
        piece.read->promote = true;
        ++changes_;
      }
    }
  }
}

ExpertCache::Answer ExpertCache::next(ExpertStream::Piece* piece,
                                      Status* status) {
  FLASH_CHECK(layer_ != kNone && !held_);
  while (first_open_ < entries_.size() &&
         entries_[first_open_].next == entries_[first_open_].pieces) {
    ++first_open_;
  }
  if (first_open_ == entries_.size()) return Answer::kDone;
  for (size_t i = first_open_; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.next == entry.pieces) continue;
    PieceInfo& found = info(entry.slab, entry.next);
    if (found.state != State::kResident) continue;
    held_ = true;
    held_slab_ = entry.slab;
    held_index_ = entry.next++;
    forced_ = false;
    fill(held_slab_, held_index_, piece);
    return Answer::kPiece;
  }
  if (!failure_.ok()) {
    *status = std::move(failure_);
    failure_ = Status();
    return Answer::kFailed;
  }
  return Answer::kWait;
}

void ExpertCache::fill(SlabId slab,
                       uint32_t index,
                       ExpertStream::Piece* piece) {
  schedule_.layout(slab, index, &layout_);
  const std::byte* home = slots_.address(info(slab, index).slot);
  piece->expert = schedule_.expert_of(slab);
  piece->rows_count = layout_.rows_count;
  piece->last = index + 1 == pieces_of(slab);
  for (uint32_t i = 0; i < layout_.rows_count; ++i) {
    const ExpertPieceLayout::Rows& from = layout_.rows[i];
    ExpertStream::Rows& to = piece->rows[i];
    to = {.matrix = from.matrix,
          .row_begin = from.row_begin,
          .row_end = from.row_end};
    const ExpertMatrix& matrix =
        schedule_.layers()[layer_].matrices[from.matrix];
    for (uint32_t p = 0; p < matrix.part_count; ++p) {
      to.part[p] = home + from.at[p];
    }
    if (from.bias) to.bias = home + from.at[kTilePartsMax];
  }
}

void ExpertCache::release() {
  FLASH_CHECK(held_);
  held_ = false;
  leave_window(info(held_slab_, held_index_));
  if (slots_.over()) drop(held_slab_, held_index_);
}

void ExpertCache::end() {
  if (layer_ == kNone) return;
  if (held_) release();
  for (const Entry& entry : entries_) {
    entry_of_[schedule_.expert_of(entry.slab)] = kNone;
    for (uint32_t i = entry.next; i < entry.pieces; ++i) {
      PieceInfo& piece = info(entry.slab, i);
      leave_window(piece);
      if (piece.state == State::kReading && !piece.read->cancel) {
        piece.read->cancel = true;
        ++changes_;
      }
    }
  }
  entries_.clear();
  layer_ = kNone;
  forced_ = false;
  failure_ = Status();
}

void ExpertCache::leave_window(PieceInfo& piece) {
  if (!piece.costly) return;
  piece.costly = false;
  --window_;
}

bool ExpertCache::needed(SlabId slab, uint32_t index) const {
  if (layer_ == kNone || schedule_.layer_of(slab) != layer_) return false;
  const uint32_t entry = entry_of_[schedule_.expert_of(slab)];
  return entry != kNone && index >= entries_[entry].next;
}

bool ExpertCache::resident(SlabId slab) const {
  return resident_[slab] == pieces_of(slab);
}

// --- Look-ahead -----------------------------------------------------------

void ExpertCache::look_ahead(uint32_t layer,
                             std::span<const uint32_t> experts) {
  FLASH_CHECK(layer < schedule_.layers().size());
  ahead_wanted_.clear();
  if (layer == layer_) return;
  ahead_layer_ = layer;
  for (const uint32_t expert : experts) {
    if (expert < schedule_.layers()[layer].experts &&
        ahead_wanted_.size() < ahead_wanted_.capacity()) {
      ahead_wanted_.push_back(first_slab_[layer] + expert);
    }
  }
}

// What was read ahead for the layer is used now or was read in vain.
void ExpertCache::judge_ahead(uint32_t layer) {
  std::erase_if(ahead_read_, [&](SlabId slab) {
    if (schedule_.layer_of(slab) != layer) return false;
    const bool wanted = frequency_.used(schedule_.expert_of(slab));
    for (uint32_t i = 0; i < pieces_of(slab); ++i) {
      PieceInfo& piece = info(slab, i);
      if (!piece.ahead) continue;
      piece.ahead = false;
      if (!wanted) leave_window(piece);
      const bool used = wanted && piece.state != State::kAbsent;
      const uint64_t bytes = schedule_.piece_bytes(layer, i);
      (used ? stats_.ahead_used_bytes : stats_.ahead_wasted_bytes) += bytes;
      if (wanted || piece.state != State::kReading || piece.read->cancel) {
        continue;
      }
      piece.read->cancel = true;
      ++changes_;
    }
    return true;
  });
}

// --- Reads ----------------------------------------------------------------

ExpertCache::Read* ExpertCache::next_read() {
  if (free_reads_.empty()) return nullptr;
  if (layer_ != kNone && unread_ < entries_.size()) return read_needed();
  if (ahead_wanted_.empty() || under_way_ > ahead_under_way_ ||
      ahead_under_way_ == kAheadReadsMax) {
    return nullptr;
  }
  return read_ahead();
}

// The first piece, in the order of the round, that is neither in memory nor on
// its way.
ExpertCache::Read* ExpertCache::read_needed() {
  if (!failure_.ok()) return nullptr;
  for (; unread_ < entries_.size(); ++unread_) {
    const Entry& entry = entries_[unread_];
    for (uint32_t i = entry.next; i < entry.pieces; ++i) {
      if (info(entry.slab, i).state != State::kAbsent) continue;
      const uint32_t slot = place(entry.slab, i, false);
      if (slot == kNone) return nullptr;
      return start(entry.slab, i, slot, ReadClass::kNeededNow);
    }
  }
  return next_read();
}

ExpertCache::Read* ExpertCache::read_ahead() {
  while (!ahead_wanted_.empty()) {
    const SlabId slab = ahead_wanted_.front();
    for (uint32_t i = 0; i < pieces_of(slab); ++i) {
      if (info(slab, i).state != State::kAbsent) continue;
      const uint32_t slot = place(slab, i, true);
      if (slot == kNone) return nullptr;
      const bool known =
          std::find(ahead_read_.begin(), ahead_read_.end(), slab) !=
          ahead_read_.end();
      if (!known) ahead_read_.push_back(slab);
      info(slab, i).ahead = true;
      stats_.ahead_bytes += schedule_.piece_bytes(ahead_layer_, i);
      return start(slab, i, slot, ReadClass::kSpeculative);
    }
    ahead_wanted_.erase(ahead_wanted_.begin());
  }
  return nullptr;
}

ExpertCache::Read* ExpertCache::start(SlabId slab,
                                      uint32_t index,
                                      uint32_t slot,
                                      ReadClass read_class) {
  const uint32_t record = free_reads_.back();
  free_reads_.pop_back();
  Read& read = reads_[record];
  FLASH_CHECK(read.left == 0);
  PieceInfo& piece = info(slab, index);
  piece.state = State::kReading;
  piece.slot = slot;
  piece.read = &read;
  read.slab = slab;
  read.index = index;
  read.count = 0;
  read.ahead = read_class == ReadClass::kSpeculative;
  if (read.ahead) ++ahead_under_way_;
  read.cancel = read.cancelled = read.promote = false;
  read.status = Status();
  schedule_.layout(slab, index, &layout_);
  std::byte* home = slots_.address(slot);
  for (uint32_t i = 0; i < layout_.range_count; ++i) {
    const ExpertRange& range = layout_.ranges[i];
    for (uint64_t at = 0; at < range.bytes; at += kExpertReadBytes) {
      ReadRequest& r = read.requests[read.count++];
      r.file = &files_[range.file];
      r.offset = range.offset + at;
      r.buffer = home + range.home + at;
      r.bytes =
          static_cast<uint32_t>(std::min(kExpertReadBytes, range.bytes - at));
      r.bytes_min = static_cast<uint32_t>(
          std::min<uint64_t>(r.bytes, range.bytes_min - at));
      r.read_class = read_class;
      r.tag = record;
    }
  }
  read.left = read.count;
  ++under_way_;
  return &read;
}

void ExpertCache::on_completion(ReadRequest& request) {
  Read& read = reads_[request.tag];
  FLASH_CHECK(read.left > 0);
  stats_.bytes_read += request.done_bytes;
  // An error says more than that another part was cancelled.
  const bool open =
      read.status.ok() || read.status.code() == StatusCode::kCancelled;
  if (open && !request.status.ok()) read.status = request.status;
  if (--read.left > 0) return;
  if (read.cancel && !read.cancelled) --changes_;
  if (read.promote) --changes_;
  read.cancel = read.promote = false;
  free_reads_.push_back(static_cast<uint32_t>(request.tag));
  --under_way_;
  if (read.ahead) --ahead_under_way_;
  read.ahead = false;
  PieceInfo& piece = info(read.slab, read.index);
  piece.read = nullptr;
  if (read.status.ok()) {
    piece.state = State::kResident;
    set_resident(read.slab, 1);
    if (slots_.over() && !needed(read.slab, read.index)) {
      drop(read.slab, read.index);
    }
    return;
  }
  piece.state = State::kAbsent;
  leave_window(piece);
  slots_.give(piece.slot);
  piece.slot = kNone;
  if (!needed(read.slab, read.index)) return;
  // Cancelled in an earlier round and needed in this one, or failed: it is read
  // again, after the consumer has heard of a failure.
  unread_ = 0;
  if (read.status.code() == StatusCode::kCancelled || !failure_.ok()) return;
  const uint32_t layer = schedule_.layer_of(read.slab);
  failure_ = read.status.at(fmt::format("{}, expert {}",
                                        schedule_.layers()[layer].name,
                                        schedule_.expert_of(read.slab)));
}

ExpertCache::Read* ExpertCache::next_cancel() {
  if (changes_ == 0) return nullptr;
  for (Read& read : reads_) {
    if (read.left == 0 || !read.cancel || read.cancelled) continue;
    read.cancelled = true;
    --changes_;
    return &read;
  }
  return nullptr;
}

ExpertCache::Read* ExpertCache::next_promotion() {
  if (changes_ == 0) return nullptr;
  for (Read& read : reads_) {
    if (read.left == 0 || !read.promote) continue;
    read.promote = false;
    --changes_;
    return &read;
  }
  return nullptr;
}

void ExpertCache::cancel_all() {
  ahead_wanted_.clear();
  for (Read& read : reads_) {
    if (read.left == 0 || read.cancel) continue;
    read.cancel = true;
    ++changes_;
  }
}

}  // namespace mlx_flash
