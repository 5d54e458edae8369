// SPDX-License-Identifier: MIT
#pragma once

// Hands weight tiles to the compute, reading ahead of it.
//
// The stream walks the schedule cyclically, across token boundaries: while the
// sampler runs, the next token's first tiles are being read. Pinned tiles are
// read once, in the first pass, into a home of their own; all others pass
// through a ring of slots, taken when the read is submitted and given back by
// release(). Back-pressure is by slots only.
//
// The schedule is a prediction. acquire() of any tile in any order makes
// progress: a tile that is neither resident nor on its way is read at top
// priority into a free slot or, if none is free, into the slot of the tile
// predicted to be used last (counted as a miss). An order that one whole pass
// really had replaces the prediction.
//
// The logic is a thread-free state machine (tile_stream_core.h); this class is
// the thin shell with a lock. It needs no thread of its own: reads are
// submitted when slots come free and reaped when tiles are asked for.
//
// Thread-safe, but for one consumer: acquire() is called by one thread at a
// time, which may hold up to `ring_slots` - 1 tiles.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "io/read_queue.h"
#include "residency/arena.h"
#include "residency/bandwidth_controller.h"
#include "residency/plan.h"
#include "residency/schedule.h"

namespace mlx_flash {

class TileStream {
 public:
  struct Stats {
    uint64_t passes = 0;
    uint64_t tiles_streamed = 0;  // acquired through the ring
    uint64_t tiles_pinned = 0;    // acquired from a pinned home
    uint64_t misses = 0;          // acquired without having been predicted
    uint64_t ring_wraps = 0;      // times every slot had been used once more
    uint64_t bytes_read = 0;      // by finished reads, slack included
    double wait_seconds = 0;      // acquire() spent waiting for the disk
    BandwidthController::Stats controller;
  };

  struct Options {
    bool read_ahead = true;  // false: a tile is read when it is asked for
    bool controller = true;  // bandwidth_controller.h
  };

  // A resident tile: `part[i]` points at the first wanted byte of each part.
  // Valid until release().
  struct View {
    TileId tile = 0;
    const std::byte* part[kTilePartsMax] = {};
  };

  // Address space an Arena needs for a stream: ring and a home for each tile.
  static uint64_t address_bytes(const Schedule& schedule,
                                const Plan& plan,
                                uint64_t page_bytes);

  // `files` by index of TilePart::file. All arguments outlive the stream.
  // Takes ring and homes from `arena`; reading starts at once.
  static Result<std::unique_ptr<TileStream>> create(const Schedule& schedule,
                                                    const Plan& plan,
                                                    Arena& arena,
                                                    ReadQueue& queue,
                                                    std::span<const File> files,
                                                    const Options& options);
  static Result<std::unique_ptr<TileStream>> create(
      const Schedule& schedule,
      const Plan& plan,
      Arena& arena,
      ReadQueue& queue,
      std::span<const File> files) {
    return create(schedule, plan, arena, queue, files, Options());
  }
  virtual ~TileStream() = default;

  // Waits until the tile is in memory. Fails when its read failed for good;
  // the next acquire() of it tries again.
  virtual Result<View> acquire(TileId tile) = 0;
  virtual void release(TileId tile) = 0;

  // The tile if it is pinned and already in memory; never waits, never reads.
  // Valid until the next set_pins().
  virtual bool peek_pinned(TileId tile, View* view) const = 0;

  // A pass is over: everything acquired since the last call was its order, and
  // is learnt unless it was just the beginning of the prediction (interrupted,
  // or without logits).
  virtual void end_pass() = 0;

  // Replaces the pinned set while running: tiles that leave it give their
  // memory back now, tiles that join it are read in the next pass.
  // REQUIRES: no tile is acquired.
  virtual Status set_pins(const std::vector<bool>& pinned) = 0;

  virtual Stats stats() const = 0;

  // For tests: stops the process if the bookkeeping contradicts itself.
  virtual void check_invariants() const = 0;
};

}  // namespace mlx_flash
