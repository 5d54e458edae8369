// SPDX-License-Identifier: MIT
#pragma once

// The ExpertStream of an ordinary run: experts in memory up to a budget, the
// rest from disk.
//
// The logic is a thread-free state machine (expert_cache.h); this is the thin
// shell that submits to and reaps from the one ReadQueue. It needs no thread of
// its own: reads are submitted when a round begins and memory comes free, and
// reaped when pieces are asked for.
//
// Thread-compatible: one consumer; between rounds the engine.

#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "io/read_queue.h"
#include "residency/arena.h"
#include "residency/expert_frequency.h"
#include "residency/expert_schedule.h"
#include "residency/expert_stream.h"
#include "residency/look_ahead_gate.h"

namespace mlx_flash {

class CachedExperts : public ExpertStream {
 public:
  struct Stats {
    uint64_t rounds = 0;
    // Pieces that rounds needed, and those of them that were in memory when
    // the round began; their wanted bytes.
    uint64_t pieces = 0;
    uint64_t hits = 0;
    uint64_t bytes = 0;
    uint64_t hit_bytes = 0;
    uint64_t evictions = 0;
    uint64_t bytes_read = 0;  // by finished reads, slack included
    // Of bytes_read: by look-ahead, and what of it was used by the round that
    // it was for, and what was not.
    uint64_t ahead_bytes = 0;
    uint64_t ahead_used_bytes = 0;
    uint64_t ahead_wasted_bytes = 0;
    double wait_seconds = 0;  // next() spent waiting for the disk
    LookAheadGate::Stats gate;
  };

  enum class LookAhead : uint8_t { kGate, kAlways, kNever };

  // Address space an Arena needs: every piece in memory.
  static uint64_t address_bytes(const ExpertSchedule& schedule,
                                uint64_t page_bytes);

  // `files` by index of MatrixPart::file. All arguments outlive the stream,
  // which takes memory from `arena` as experts come, up to `budget_bytes`.
  static Result<std::unique_ptr<CachedExperts>> create(
      const ExpertSchedule& schedule,
      uint64_t budget_bytes,
      Arena& arena,
      ReadQueue& queue,
      std::span<const File> files,
      LookAhead look_ahead = LookAhead::kGate,
      ExpertPolicy policy = ExpertPolicy::kFrequency);

  // Moves the share while running: what does not fit is given back before it
  // returns. REQUIRES: no round is open.
  virtual void set_budget(uint64_t bytes) = 0;

  // What a later run goes on with (expert_frequency.h).
  virtual ExpertFrequency::State learnt() const = 0;
  virtual bool restore(const ExpertFrequency::State& state) = 0;

  // Memory taken now.
  virtual uint64_t resident_bytes() const = 0;
  virtual Stats stats() const = 0;

  // For tests: stops the process if the bookkeeping contradicts itself.
  virtual void check_invariants() const = 0;
};

}  // namespace mlx_flash
