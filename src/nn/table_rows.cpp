// SPDX-License-Identifier: MIT
#include "nn/table_rows.h"

#include <vector>

namespace mlx_flash::nn {
namespace {

// `rows` rows whose parts lie at `part`; `above`: as WeightRows::rows_above.
template <typename AnyMatrix>
kernels::WeightRows rows_at(const AnyMatrix& matrix,
                            size_t rows,
                            const std::byte* const (&part)[kTilePartsMax],
                            size_t above) {
  return {.format = matrix.format,
          .rows = rows,
          .cols = matrix.cols,
          .weight = part[0],
          .scales = part[1],
          .biases = part[2],
          .rows_above = above};
}

// Row `row` of the matrix, of rows in memory that begin with `first`.
template <typename View>
kernels::WeightRows one_row(const ScheduledMatrix& matrix,
                            const View& view,
                            uint64_t first,
                            uint64_t row) {
  const std::byte* part[kTilePartsMax] = {};
  for (uint32_t p = 0; p < matrix.part_count; ++p) {
    const MatrixPart& from = matrix.parts[p];
    part[p] = view.part[p] + (from.begin_of(row) - from.begin_of(first));
  }
  return rows_at(matrix, 1, part, matrix.parts[1].above(row));
}

// The tile of `matrix` that holds row `id`.
TileId tile_of(const Schedule& schedule,
               const ScheduledMatrix& matrix,
               uint32_t id) {
  uint32_t low = 0;
  uint32_t high = matrix.tile_count;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const Tile& tile = schedule.tiles()[matrix.first_tile + middle];
    (tile.row_begin <= id ? low : high) = middle;
  }
  return matrix.first_tile + low;
}

}  // namespace

kernels::WeightRows tile_rows(const ScheduledMatrix& matrix,
                              const Tile& tile,
                              const TileStream::View& view) {
  return rows_at(matrix,
                 tile.row_end - tile.row_begin,
                 view.part,
                 matrix.parts[1].above(tile.row_begin));
}

kernels::WeightRows expert_rows(const ExpertMatrix& matrix,
                                uint32_t expert,
                                const ExpertStream::Rows& rows) {
  return rows_at(matrix,
                 rows.row_end - rows.row_begin,
                 rows.part,
                 matrix.parts[expert][1].above(rows.row_begin));
}

Status visit_table_rows(Context& context,
                        const Linear& table,
                        std::span<const uint32_t> ids,
                        const VisitRow& visit) {
  const ScheduledMatrix& matrix = context.schedule->matrices()[table.matrix];
  std::vector<uint32_t> absent;  // ids to read
  std::vector<size_t> places;    // and their indices
  for (size_t i = 0; i < ids.size(); ++i) {
    const TileId id = tile_of(*context.schedule, matrix, ids[i]);
    TileStream::View view;
    if (context.tiles->peek_pinned(id, &view)) {
      const Tile& tile = context.schedule->tiles()[id];
      visit(i, one_row(matrix, view, tile.row_begin, ids[i]));
    } else {
      absent.push_back(ids[i]);
      places.push_back(i);
    }
  }
  if (absent.empty()) return Status();
  return context.rows->read(absent, [&](size_t i, const RowReader::View& view) {
    visit(places[i], one_row(matrix, view, view.row, view.row));
  });
}

}  // namespace mlx_flash::nn
