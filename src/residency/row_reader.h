// SPDX-License-Identifier: MIT
#pragma once

// Reads single rows of a matrix by index: the input embeddings of a batch.
//
// A row costs a block or two of the disk instead of the matrix its bytes in
// memory. The rows of one call are read in parallel, most urgent of all; the
// most recent rows are kept (a prompt repeats its frequent tokens). Bytes come
// as they lie in the file: the caller dequantises.
//
// Thread-compatible: one call at a time. Nothing is allocated after create().

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "io/aligned_buffer.h"
#include "io/read_queue.h"
#include "residency/schedule.h"

namespace mlx_flash {

class RowReader {
 public:
  static constexpr uint32_t kRowsDefault = 64;

  // `part[i]` points at the first byte of the row in each part of the matrix.
  struct View {
    uint32_t row = 0;
    const std::byte* part[kTilePartsMax] = {};
  };

  struct Stats {
    uint64_t rows = 0;  // asked for
    uint64_t hits = 0;  // of which were still in memory
    uint64_t bytes_read = 0;
    double wait_seconds = 0;
  };

  // Memory of a reader, for the planner. `alignment` as for the Schedule.
  static uint64_t memory_bytes(const ScheduledMatrix& matrix,
                               uint64_t alignment,
                               uint32_t rows_kept = kRowsDefault);

  // `files` by index of MatrixPart::file; they and the queue outlive the
  // reader. REQUIRES: rows_kept >= 1.
  static Result<std::unique_ptr<RowReader>> create(
      const ScheduledMatrix& matrix,
      uint64_t alignment,
      std::span<const File> files,
      ReadQueue& queue,
      uint32_t rows_kept = kRowsDefault);
  ~RowReader() = default;
  RowReader(const RowReader&) = delete;
  RowReader& operator=(const RowReader&) = delete;

  // Calls visit(i, view) for each rows[i], in order; the view is valid only
  // during the call. Any number of rows; more than are kept go in several
  // rounds. Fails with the first error, or for a row beyond the matrix.
  // REQUIRES: visit does not throw.
  template <typename Visit>
  Status read(std::span<const uint32_t> rows, const Visit& visit) {
    return read_rows(
        rows,
        [](const void* v, size_t i, const View& view) {
          (*static_cast<const Visit*>(v))(i, view);
        },
        &visit);
  }

  const Stats& stats() const { return stats_; }

 private:
  using Call = void (*)(const void* visit, size_t i, const View& view);
  static constexpr uint64_t kNoRow = UINT64_MAX;

  // Memory of one row: all parts, each with room for its alignment slack.
  struct Slot {
    uint64_t row = kNoRow;
    uint64_t last_round = 0;  // that used it
    ReadRequest parts[kTilePartsMax];
  };

  RowReader(const ScheduledMatrix& matrix,
            uint64_t alignment,
            std::span<const File> files,
            ReadQueue& queue,
            uint32_t rows_kept);

  Status read_rows(std::span<const uint32_t> rows,
                   Call call,
                   const void* visit);
  // Makes sure of a slot for the row, reading into it if need be; null if all
  // slots belong to this round.
  Slot* find_or_start(uint64_t row);
  void start(Slot& slot, uint64_t row);
  Status wait_all();
  View view_of(const Slot& slot) const;
  std::byte* memory_of(const Slot& slot) const;

  const ScheduledMatrix matrix_;
  const uint64_t alignment_;
  const std::span<const File> files_;
  ReadQueue& queue_;
  uint64_t part_room_[kTilePartsMax] = {};  // bytes of each part in a slot
  uint64_t slot_bytes_ = 0;
  AlignedBuffer memory_;
  std::vector<Slot> slots_;
  std::vector<Slot*> round_slots_;  // of the rows of this round; fixed capacity
  ReadChannel channel_;
  uint64_t round_ = 0;
  Stats stats_;
};

}  // namespace mlx_flash
