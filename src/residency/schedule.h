// SPDX-License-Identifier: MIT
#pragma once

// The order in which one pass is expected to use the weights.
//
// A model declares each of its matrices once, in that order; every matrix is
// cut into tiles, ranges of rows with all their parts (weights, scales,
// biases). Rows are independent dot products, so cutting changes no bit. The
// schedule is a prediction, not a contract (tile_stream.h).
//
// Pure values: no I/O, no threads, no MLX.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/weight_format.h"

namespace mlx_flash {

using MatrixId = uint32_t;
using TileId = uint32_t;

inline constexpr size_t kTilePartsMax = 3;  // weights, scales, biases

// One part of a matrix: `row_bytes` per row from `offset` on. Rows may share
// them (fp8: the scales of 128 rows are one row of the part); then the matrix's
// first row need not be the first of those that share `offset`.
struct MatrixPart {
  uint32_t file = 0;  // index into the checkpoint's files
  uint64_t offset = 0;
  uint64_t row_bytes = 0;
  uint32_t shared_by = 1;   // rows
  uint32_t rows_above = 0;  // that share `offset` with row 0; < shared_by

  // Where the bytes of `row` begin; where those of all rows before it end.
  uint64_t begin_of(uint64_t row) const {
    return offset + (rows_above + row) / shared_by * row_bytes;
  }
  uint64_t end_before(uint64_t row) const {
    return offset + (rows_above + row + shared_by - 1) / shared_by * row_bytes;
  }
  // Of rows [begin, end).
  uint64_t bytes(uint64_t begin, uint64_t end) const {
    return end_before(end) - begin_of(begin);
  }
  // Rows above `row` that share its bytes.
  uint64_t above(uint64_t row) const { return (rows_above + row) % shared_by; }
  // What a row adds to a tile, rounded up.
  uint64_t bytes_per_row() const {
    return (row_bytes + shared_by - 1) / shared_by;
  }
};

struct ScheduledMatrix {
  std::string name;  // for messages and statistics
  WeightFormat format;
  uint64_t rows = 0;
  uint64_t cols = 0;
  std::array<MatrixPart, kTilePartsMax> parts;
  uint32_t part_count = 0;
  // Used by every pass, from the first row to the last. False: read by the row
  // (an input embedding); it has tiles only to be pinned, after all else.
  bool every_pass = true;
  TileId first_tile = 0;  // set by Schedule
  uint32_t tile_count = 0;

  uint64_t bytes() const;
};

// Where one part of a tile goes. `aligned_*` is what direct I/O reads.
struct TilePart {
  uint32_t file = 0;
  uint64_t offset = 0;          // of the first wanted byte, in the file
  uint64_t bytes = 0;           // wanted
  uint64_t aligned_offset = 0;  // offset rounded down
  uint64_t aligned_bytes = 0;   // to cover [offset, offset + bytes)
  uint64_t home_offset = 0;     // of aligned_offset, inside the tile's memory
};

struct Tile {
  MatrixId matrix = 0;
  uint32_t row_begin = 0;
  uint32_t row_end = 0;
  std::array<TilePart, kTilePartsMax> parts;
  uint32_t part_count = 0;
  uint64_t bytes = 0;       // wanted, of all parts
  uint64_t slot_bytes = 0;  // memory and bytes read, alignment slack included
};

class Schedule {
 public:
  // Cuts each matrix into tiles of whole rows of at most about
  // `tile_bytes_max` (at least one row each; equal sizes within a matrix).
  // `alignment` is a power of two: what direct reads need.
  Schedule(std::vector<ScheduledMatrix> matrices,
           uint64_t tile_bytes_max,
           uint64_t alignment);

  const std::vector<ScheduledMatrix>& matrices() const { return matrices_; }
  const std::vector<Tile>& tiles() const { return tiles_; }  // by TileId
  // The tiles of every_pass matrices, in expected order of use.
  const std::vector<TileId>& order() const { return order_; }

  uint64_t pass_bytes() const;      // M: wanted bytes of one decode pass
  uint64_t slot_bytes_max() const;  // largest tile, with slack
  uint64_t tile_bytes_max() const { return tile_bytes_max_; }
  uint64_t alignment() const { return alignment_; }

 private:
  std::vector<ScheduledMatrix> matrices_;
  std::vector<Tile> tiles_;
  std::vector<TileId> order_;
  uint64_t tile_bytes_max_ = 0;
  uint64_t alignment_ = 1;
};

}  // namespace mlx_flash
