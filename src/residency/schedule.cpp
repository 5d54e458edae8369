// SPDX-License-Identifier: MIT
#include "residency/schedule.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace mlx_flash {
namespace {

uint64_t bytes_per_row(const ScheduledMatrix& matrix) {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < matrix.part_count; ++i) {
    bytes += matrix.parts[i].bytes_per_row();
  }
  return bytes;
}

// Rows [begin, end) with all their parts, one after the other in memory.
Tile make_tile(const ScheduledMatrix& matrix,
               MatrixId id,
               uint64_t begin,
               uint64_t end,
               uint64_t alignment) {
  Tile tile;
  tile.matrix = id;
  tile.row_begin = static_cast<uint32_t>(begin);
  tile.row_end = static_cast<uint32_t>(end);
  tile.part_count = matrix.part_count;
  for (uint32_t i = 0; i < matrix.part_count; ++i) {
    const MatrixPart& from = matrix.parts[i];
    TilePart& part = tile.parts[i];
    part.file = from.file;
    part.offset = from.begin_of(begin);
    part.bytes = from.bytes(begin, end);
    part.aligned_offset = part.offset / alignment * alignment;
    const uint64_t stop = part.offset + part.bytes;
    part.aligned_bytes =
        (stop + alignment - 1) / alignment * alignment - part.aligned_offset;
    part.home_offset = tile.slot_bytes;
    tile.bytes += part.bytes;
    tile.slot_bytes += part.aligned_bytes;
  }
  return tile;
}

}  // namespace

uint64_t ScheduledMatrix::bytes() const {
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < part_count; ++i) bytes += parts[i].bytes(0, rows);
  return bytes;
}

Schedule::Schedule(std::vector<ScheduledMatrix> matrices,
                   uint64_t tile_bytes_max,
                   uint64_t alignment)
    : matrices_(std::move(matrices)),
      tile_bytes_max_(tile_bytes_max),
      alignment_(alignment) {
  FLASH_CHECK(alignment >= 1 && std::has_single_bit(alignment));
  for (MatrixId id = 0; id < matrices_.size(); ++id) {
    ScheduledMatrix& matrix = matrices_[id];
    FLASH_CHECK(matrix.part_count <= kTilePartsMax);
    FLASH_CHECK(matrix.rows <= UINT32_MAX);
    matrix.first_tile = static_cast<TileId>(tiles_.size());
    matrix.tile_count = 0;
    const uint64_t row = bytes_per_row(matrix);
    if (row == 0 || matrix.rows == 0) continue;
    const uint64_t rows_max = std::max<uint64_t>(1, tile_bytes_max / row);
    const uint64_t count = (matrix.rows + rows_max - 1) / rows_max;
    matrix.tile_count = static_cast<uint32_t>(count);
    for (uint64_t i = 0; i < count; ++i) {
      // Equal sizes to within one row.
      const uint64_t begin =
          matrix.rows / count * i + std::min<uint64_t>(i, matrix.rows % count);
      const uint64_t rows =
          matrix.rows / count + (i < matrix.rows % count ? 1 : 0);
      if (matrix.every_pass) {
        order_.push_back(static_cast<TileId>(tiles_.size()));
      }
      tiles_.push_back(make_tile(matrix, id, begin, begin + rows, alignment));
    }
  }
}

uint64_t Schedule::pass_bytes() const {
  uint64_t bytes = 0;
  for (const TileId id : order_) bytes += tiles_[id].bytes;
  return bytes;
}

uint64_t Schedule::slot_bytes_max() const {
  uint64_t bytes = 0;
  for (const Tile& tile : tiles_) bytes = std::max(bytes, tile.slot_bytes);
  return bytes;
}

}  // namespace mlx_flash
