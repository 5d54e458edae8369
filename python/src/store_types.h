// SPDX-License-Identifier: MIT
#pragma once

// Values that go in and out of a Store (store.h).

#include <cstdint>
#include <string_view>

#include "io/read_queue.h"
#include "residency/cached_experts.h"
#include "residency/expert_frequency.h"
#include "residency/row_reader.h"
#include "residency/tile_stream.h"

namespace mlx_flash::python {

// What the message of a forward says that was given up for want of memory.
inline constexpr std::string_view kNoRoom = "does not fit in the budget";

struct StoreOptions {
  int threads = 0;      // of the kernels; 0: all there are
  int queue_depth = 0;  // reads under way at once; 0: the queue's own choice
  bool read_ahead = true;
  bool controller = true;   // residency/bandwidth_controller.h
  uint64_t tile_bytes = 0;  // 0: chosen by the plan
  IoKind io = IoKind::kAuto;
  double bytes_per_s = 0;  // to take from the disk, at most; 0: no limit
  ExpertPolicy policy = ExpertPolicy::kFrequency;
};

// What start() divides. Bytes.
struct Budget {
  uint64_t ram = 0;  // the whole process
  uint64_t runtime =
      0;                // what it holds besides the weights, a reserve included
  uint64_t decode = 0;  // arrays of one token's forward
  uint64_t per_row = 0;  // more for each further row; learnt while running
  uint32_t experts = 0;  // kept of each table, on average; 0: as many as fit
  bool fixed = false;    // never moves (tests)
};

// The forward that an operation belongs to.
struct Pass {
  uint64_t epoch = 0;  // rises with each; tasks of cancelled ones do nothing
  uint32_t rows = 0;   // tokens; 0: an operation outside of any forward
};

struct StoreStats {
  TileStream::Stats stream;
  RowReader::Stats tables;
  CachedExperts::Stats experts;
  uint64_t experts_bytes = 0;     // in memory now
  uint64_t arrays_bytes = 0;      // weight arrays alive now
  uint64_t arrays_bytes_max = 0;  // at any time
  uint64_t arrays_made = 0;
  uint64_t pinned_bytes = 0;
  uint64_t peak_bytes = 0;  // resident memory, as seen at operations
  double compute_seconds = 0;
  const char* io = "";  // how weights are read
};

}  // namespace mlx_flash::python
