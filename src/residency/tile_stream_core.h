// SPDX-License-Identifier: MIT
#pragma once

// The logic of TileStream as a thread-free state machine: it decides what to
// read into which memory, and never reads, waits or asks the time itself. The
// shell (tile_stream.cpp) or a simulator carries its decisions out:
//
//   want(tile)                    until it is not kWait; after each change
//   next_cancel(), next_read()    until null: submit what they say
//   on_completion(request)        for every request that came back
//
// Positions. The prediction is a sequence of tiles. The consumer stands at
// `consumer_`, the reader at `reader_` in [consumer_, consumer_ + length]; from
// `length` on positions mean the next pass. A tile that the reader passes is in
// memory, on its way, or has been given up as a victim (then it steps back).
//
// Memory. A pinned tile has a home; any other passes through a slot of the
// ring. A slot is free, being read, resident, or being discarded (its read was
// cancelled and has not come back). One read record belongs to each slot, and a
// few to homes, which bounds the reads of the first pass.
//
// Thread-compatible. Allocates only when an order is learnt.

#include <array>
#include <cstdint>
#include <vector>

#include "io/read_queue.h"
#include "residency/schedule.h"
#include "residency/tile_stream.h"

namespace mlx_flash {

class TileStreamCore {
 public:
  // All parts of one tile on their way into one place.
  struct Read {
    TileId tile = 0;
    std::array<ReadRequest, kTilePartsMax> parts;
    uint32_t part_count = 0;
    uint32_t parts_left = 0;  // 0: this record is free
    uint32_t slot = kHome;
    bool discard = false;   // nobody wants it any more
    bool promoted = false;  // has been at kNeededNow
    Status status;          // the first error
  };
  static constexpr uint32_t kHome = UINT32_MAX;

  struct Memory {
    std::byte* ring = nullptr;  // ring_slots * slot_bytes
    uint64_t slot_bytes = 0;
    uint32_t ring_slots = 0;
    std::vector<std::byte*> homes;  // by TileId; addresses, not all committed
    uint32_t home_reads_max = 8;    // under way ahead of the consumer
  };

  // `files` and `schedule` outlive the core; pins come by pin().
  TileStreamCore(const Schedule& schedule,
                 std::span<const File> files,
                 Memory memory);

  enum class Answer { kReady, kWait, kFailed };

  // Asks for a tile; kReady holds it. kFailed gives the reason and forgets it.
  // While kWait only this tile may be asked for.
  Answer want(TileId tile, TileStream::View* view, Status* status);
  // The consumer does not wait for its tile any more.
  void give_up();
  void release(TileId tile);  // REQUIRES: held
  bool end_pass();            // whether another order is predicted from now on

  // The next read to submit (all parts), or to cancel, or to promote to
  // kNeededNow; null if none.
  Read* next_read();
  Read* next_cancel();
  Read* next_promotion();
  void on_completion(ReadRequest& request);

  void pin(TileId tile);
  // The memory of the home may go once discards_under_way() is 0.
  void unpin(TileId tile);
  // Steps back to the consumer after changes of pins.
  void restart_prediction() { reader_ = consumer_; }
  bool pinned(TileId tile) const { return tiles_[tile].pinned; }
  uint32_t discards_under_way() const { return discards_; }
  void discard_all();  // for the end: every read under way
  uint32_t held() const { return held_; }
  // The consumer waits for a tile that nobody has begun to read.
  bool demand_unread() const {
    return demand_ != kNone && !demand_failed_ &&
           tiles_[demand_].state == State::kAbsent;
  }
  uint64_t consumer() const { return consumer_; }
  // Of the ring: read and not in use.
  uint64_t bytes_ahead() const;

  bool peek_home(TileId tile, TileStream::View* view) const;
  const TileStream::Stats& stats() const { return stats_; }

  const std::vector<TileId>& predicted() const { return predicted_; }

  // For tests: every invariant that can be checked at any time.
  void check_invariants() const;

 private:
  enum class State : uint8_t { kAbsent, kReading, kResident };
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint64_t kNever = UINT64_MAX;

  struct TileInfo {
    State state = State::kAbsent;
    bool pinned = false;
    uint32_t place = kHome;  // slot, or kHome
    uint32_t holds = 0;
    uint32_t uses = 0;     // in this pass
    Read* read = nullptr;  // while kReading
  };
  enum class SlotState : uint8_t { kFree, kUsed, kDiscarding };
  struct Slot {
    SlotState state = SlotState::kFree;
    TileId tile = 0;
    uint32_t uses = 0;  // acquired tiles that passed through
  };

  std::byte* place_of(TileId tile) const;
  void fill_view(TileId tile, TileStream::View* view) const;
  Read* start(Read& read, TileId tile, uint32_t slot, ReadClass read_class);
  Read* read_for_demand();
  Read* read_ahead();
  Read* free_home_read(uint32_t limit);

  uint32_t take_free_slot();  // kNone if none
  void free_slot(uint32_t slot);
  void drop(TileId tile);  // out of the ring; cancels its read
  // The unheld slot whose tile is used last, not before position `from`.
  uint32_t find_victim(uint64_t from, bool resident_only) const;
  uint64_t next_use(TileId tile) const;  // position, kNever if not predicted
  bool used_up(TileId tile) const;       // as often as this pass will

  void take(TileId tile);
  void step_consumer(TileId tile);
  void count_slot_use(Slot& slot);
  bool pass_was_whole() const;
  void index_prediction();

  const Schedule& schedule_;
  std::span<const File> files_;
  Memory memory_;

  std::vector<TileInfo> tiles_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;  // a queue: oldest first
  size_t free_head_ = 0;
  size_t free_count_ = 0;
  std::vector<Read> slot_reads_;  // one for each slot
  std::vector<Read> home_reads_;  // home_reads_max, and one for a demand
  std::vector<Read*> cancels_;    // to be handed out; capacity: all reads
  Read* promotion_ = nullptr;

  std::vector<TileId> predicted_;
  std::vector<uint32_t>
      where_begin_;              // of tile t: where_[begin[t], begin[t+1])
  std::vector<uint32_t> where_;  // positions, ascending
  uint64_t consumer_ = 0;
  uint64_t reader_ = 0;
  uint64_t resync_ = kNever;  // where the consumer may really be

  std::vector<TileId> record_;  // what this pass acquired
  bool record_full_ = false;

  TileId demand_ = kNone;
  bool demand_failed_ = false;
  bool demand_started_ = false;  // by read_for_demand()
  Status demand_status_;

  uint32_t discards_ = 0;
  uint32_t held_ = 0;
  uint32_t slots_beyond_ = 0;  // slots used more often than ring_wraps
  TileStream::Stats stats_;
};

}  // namespace mlx_flash
