// SPDX-License-Identifier: MIT
#pragma once

// A record of what happened when: reads, waits, compute. Written as a Chrome
// trace, which https://ui.perfetto.dev and chrome://tracing open.
//
// Memory for all events is taken at the start, so that recording allocates
// nothing and counts in the budget like everything else; what comes after the
// last free place is counted and left out.
//
// Thread-safe.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_annotations.h"

namespace mlx_flash {

class Trace {
 public:
  enum class Kind : uint8_t {
    kForward,     // one forward of the engine; `what`: its rows
    kWait,        // the compute waited for a tile; `what`: the tile
    kTile,        // a tile was in use; `what`: the tile
    kExpertWait,  // it waited for an expert; `what`: layer << 32 | expert
    kExpert,      // a piece of an expert was in use; `what`: the same
    // A layer's experts, from the choice to the last; `what`: layer << 32 |
    // pieces in memory at first << 16 | pieces that were not, `bytes` of these.
    kExpertRound,
    kRead,  // from submission to the end of a read; `what`: file offset
  };

  struct Event {
    double start = 0;  // seconds, any one clock
    double end = 0;
    uint64_t what = 0;
    uint64_t bytes = 0;
    Kind kind = Kind::kForward;
    uint8_t read_class = 0;  // kRead: io's ReadClass
  };

  explicit Trace(size_t capacity);

  void add(const Event& event);

  size_t size() const;
  uint64_t dropped() const;  // events that found no place

  // Writes all events to a file, one row for forwards, one for waits, one for
  // tiles, and as many for reads as were under way at once. `tile_name` names
  // the matrix of a tile. Fails with path and reason; the file is then removed.
  Status write(const std::string& path,
               const std::function<std::string(uint64_t)>& tile_name) const;

 private:
  mutable Mutex mutex_;
  std::vector<Event> events_ GUARDED_BY(mutex_);  // size is the capacity
  size_t used_ GUARDED_BY(mutex_) = 0;
  uint64_t dropped_ GUARDED_BY(mutex_) = 0;
};

}  // namespace mlx_flash
