// SPDX-License-Identifier: MIT
#pragma once

// The logic of CachedExperts as a thread-free state machine: which pieces are
// in memory, which go, what is read next. It never reads, waits or asks the
// time; the shell (cached_experts.cpp) or a simulator carries its decisions
// out:
//
//   next(&piece, &status)         until it is not kWait; after each change
//   next_read(), next_cancel(),   until null: submit, cancel, promote what
//   next_promotion()              they say
//   on_completion(request)        for every request that came back
//
// One budget serves all layers. What must go is the resident with the least
// chance of use (expert_frequency.h), an expert of a layer just passed a little
// sooner than one whose turn is near. A newcomer needs memory even if it is
// worth less than all that is there: it is read, used, and is itself the first
// to go. How many of those may be in memory at once is bounded (the window), so
// that a prompt which uses every expert of a layer takes little from the
// residents; at least one always may, so any order makes progress.
//
// Thread-compatible. Allocates only when made.

#include <cstdint>
#include <span>
#include <vector>

#include "io/read_queue.h"
#include "residency/cached_experts.h"
#include "residency/expert_frequency.h"
#include "residency/expert_schedule.h"
#include "residency/expert_slots.h"

namespace mlx_flash {

class ExpertCache {
 public:
  // All requests of one piece on its way into memory.
  struct Read {
    SlabId slab = 0;
    uint32_t index = 0;  // of the piece in the slab
    std::vector<ReadRequest> requests;
    uint32_t count = 0;  // of them used
    uint32_t left = 0;   // not back yet; 0: this record is free
    bool ahead = false;  // nobody needs it yet
    bool cancel = false;
    bool promote = false;
    bool cancelled = false;  // handed out by next_cancel()
    Status status;           // the first error
  };
  static constexpr uint32_t kReadsMax = 64;

  // What the cache keeps for itself beside the experts' memory, its slots and
  // frequencies included: 30 bytes a slab and 24 a piece, and the reads.
  static uint64_t table_bytes(const ExpertSchedule& schedule);

  // `schedule` and `files` outlive the cache.
  ExpertCache(const ExpertSchedule& schedule,
              std::span<const File> files,
              ExpertSlots slots,
              ExpertPolicy policy = ExpertPolicy::kFrequency);

  // --- The consumer: see ExpertStream.
  void begin(uint32_t layer,
             std::span<const uint32_t> experts,
             std::span<const uint32_t> rows);
  enum class Answer { kPiece, kWait, kDone, kFailed };
  // kPiece holds it, until release(). kFailed gives the reason once; the read
  // is tried again after it.
  Answer next(ExpertStream::Piece* piece, Status* status);
  void release();
  void end();
  bool round_open() const { return layer_ != kNone; }

  // What a later layer may need; replaces what was said before. Nothing is read
  // for it while reads that are needed are under way, and little at once.
  void look_ahead(uint32_t layer, std::span<const uint32_t> experts);
  void drop_look_ahead() { ahead_wanted_.clear(); }

  // --- Reads.
  Read* next_read();
  Read* next_cancel();
  Read* next_promotion();
  void on_completion(ReadRequest& request);
  uint32_t reads_under_way() const { return under_way_; }
  // Nothing is under way and the consumer waits: what must be read next may
  // take the place of what is needed later.
  void force() { forced_ = true; }

  // --- Memory.
  // REQUIRES: no round is open. Memory of reads under way follows when they
  // come back; settled() says whether it has.
  void set_budget(uint64_t bytes);
  bool settled() const { return !slots_.over(); }
  void cancel_all();  // for the end: every read under way
  // REQUIRES: no read is under way. Gives all memory back.
  void clear();

  uint64_t budget_bytes() const { return slots_.budget_bytes(); }
  uint64_t committed_bytes() const { return slots_.committed_bytes(); }
  const CachedExperts::Stats& stats() const { return stats_; }
  ExpertFrequency& frequency() { return frequency_; }
  const ExpertFrequency& frequency() const { return frequency_; }
  bool resident(SlabId slab) const;  // all of it

  // For tests: every invariant that can be checked at any time.
  void check_invariants() const;

 private:
  enum class State : uint8_t { kAbsent, kReading, kResident };
  static constexpr uint32_t kNone = UINT32_MAX;

  struct PieceInfo {
    State state = State::kAbsent;
    bool costly = false;  // in the window
    bool ahead = false;   // read by look-ahead and not used yet
    uint32_t slot = kNone;
    Read* read = nullptr;  // while kReading
  };
  struct Entry {  // one expert of the round
    SlabId slab = 0;
    uint32_t next = 0;  // first piece not handed out
    uint32_t pieces = 0;
  };
  struct Victim {
    SlabId slab = kNone;
    uint32_t index = 0;
    float rank = 0;
  };

  PieceInfo& info(SlabId slab, uint32_t index) {
    return pieces_[schedule_.piece(slab, index)];
  }
  const PieceInfo& info(SlabId slab, uint32_t index) const {
    return pieces_[schedule_.piece(slab, index)];
  }
  uint32_t pieces_of(SlabId slab) const {
    return schedule_.pieces_of(schedule_.layer_of(slab));
  }
  bool needed(SlabId slab, uint32_t index) const;
  bool held(SlabId slab, uint32_t index) const {
    return held_ && slab == held_slab_ && index == held_index_;
  }

  Read* read_needed();
  Read* read_ahead();
  Read* start(SlabId slab, uint32_t index, uint32_t slot, ReadClass);
  uint32_t place(SlabId slab, uint32_t index, bool ahead);
  uint32_t place_by_force(uint32_t memory_class);
  Victim find_victim(uint32_t memory_class) const;
  uint32_t evictable_piece(SlabId slab, uint32_t memory_class) const;
  float layer_factor(uint32_t layer) const;
  void drop(SlabId slab, uint32_t index);
  void set_resident(SlabId slab, int change);
  void leave_window(PieceInfo& piece);
  void judge_ahead(uint32_t layer);
  void fill(SlabId slab, uint32_t index, ExpertStream::Piece* piece);

  const ExpertSchedule& schedule_;
  std::span<const File> files_;
  ExpertSlots slots_;
  ExpertFrequency frequency_;

  std::vector<PieceInfo> pieces_;
  std::vector<uint16_t> resident_;  // by slab: pieces in memory
  // By slab: chance of use in a token, infinite where nothing is in memory.
  std::vector<float> rank_;
  std::vector<SlabId> first_slab_;  // by layer, and the end

  std::vector<Read> reads_;
  std::vector<uint32_t> free_reads_;
  uint32_t under_way_ = 0;
  uint32_t ahead_under_way_ = 0;  // of them
  uint32_t changes_ = 0;          // reads with cancel or promote set

  uint32_t layer_ = kNone;  // of the open round
  std::vector<Entry> entries_;
  std::vector<uint32_t> entry_of_;  // by expert of the layer
  size_t first_open_ = 0;           // entries before it are handed out
  size_t unread_ = 0;  // entries before it are in memory or on their way
  bool held_ = false;
  SlabId held_slab_ = 0;
  uint32_t held_index_ = 0;
  bool forced_ = false;
  Status failure_;

  uint32_t window_ = 0;  // pieces that took a better one's place
  uint32_t window_max_ = 1;

  uint32_t ahead_layer_ = kNone;
  std::vector<SlabId> ahead_wanted_;
  std::vector<SlabId> ahead_read_;  // slabs with pieces that are `ahead`

  ExpertPieceLayout layout_;  // scratch
  CachedExperts::Stats stats_;
};

}  // namespace mlx_flash
