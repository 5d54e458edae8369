// SPDX-License-Identifier: MIT
#include "residency/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace mlx_flash {
namespace {

ScheduledMatrix random_matrix(std::mt19937_64& random) {
  ScheduledMatrix m;
  m.name = "m";
  m.rows = 1 + random() % 5000;
  m.part_count = static_cast<uint32_t>(1 + random() % kTilePartsMax);
  m.every_pass = random() % 5 > 0;
  for (uint32_t i = 0; i < m.part_count; ++i) {
    m.parts[i] = {static_cast<uint32_t>(random() % 3),
                  random() % (uint64_t{1} << 40),
                  1 + random() % 3000};
  }
  return m;
}

// Of all rows of a part, counted one by one.
uint64_t shared_bytes(const MatrixPart& part, uint64_t rows) {
  uint64_t bytes = 0;
  for (uint64_t r = 0; r < rows; ++r) {
    const bool first = r == 0 || (part.rows_above + r) % part.shared_by == 0;
    if (first) bytes += part.row_bytes;
  }
  return bytes;
}

void expect_part_covers(const TilePart& part, uint64_t alignment) {
  EXPECT_EQ(part.aligned_offset % alignment, 0u);
  EXPECT_EQ(part.aligned_bytes % alignment, 0u);
  EXPECT_EQ(part.home_offset % alignment, 0u);
  EXPECT_LE(part.aligned_offset, part.offset);
  EXPECT_LT(part.offset - part.aligned_offset, alignment);
  const uint64_t end = part.offset + part.bytes;
  const uint64_t aligned_end = part.aligned_offset + part.aligned_bytes;
  EXPECT_GE(aligned_end, end);
  EXPECT_LT(aligned_end - end, alignment);
}

TEST(Schedule, TilesCoverEveryRowOfEveryPartOnce) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 300; ++round) {
    std::vector<ScheduledMatrix> matrices(1 + random() % 6);
    for (auto& m : matrices) m = random_matrix(random);
    const uint64_t max = 1 + random() % 200'000;
    const uint64_t alignment = uint64_t{1} << (random() % 13);
    const Schedule schedule(matrices, max, alignment);

    std::vector<TileId> order;
    uint64_t pass_bytes = 0;
    uint64_t slot_max = 0;
    for (MatrixId id = 0; id < matrices.size(); ++id) {
      const ScheduledMatrix& m = schedule.matrices()[id];
      uint64_t row = 0;
      uint64_t rows_least = UINT64_MAX;
      uint64_t rows_most = 0;
      for (TileId t = m.first_tile; t < m.first_tile + m.tile_count; ++t) {
        const Tile& tile = schedule.tiles()[t];
        EXPECT_EQ(tile.matrix, id);
        EXPECT_EQ(tile.row_begin, row);
        const uint64_t rows = tile.row_end - tile.row_begin;
        ASSERT_GT(rows, 0u);
        uint64_t bytes = 0;
        uint64_t slot = 0;
        for (uint32_t p = 0; p < tile.part_count; ++p) {
          const TilePart& part = tile.parts[p];
          EXPECT_EQ(part.file, m.parts[p].file);
          EXPECT_EQ(part.offset,
                    m.parts[p].offset + row * m.parts[p].row_bytes);
          EXPECT_EQ(part.bytes, rows * m.parts[p].row_bytes);
          EXPECT_EQ(part.home_offset, slot);  // parts do not overlap
          expect_part_covers(part, alignment);
          bytes += part.bytes;
          slot += part.aligned_bytes;
        }
        EXPECT_EQ(tile.bytes, bytes);
        EXPECT_EQ(tile.slot_bytes, slot);
        EXPECT_TRUE(bytes <= max || rows == 1);
        slot_max = std::max(slot_max, slot);
        rows_least = std::min(rows_least, rows);
        rows_most = std::max(rows_most, rows);
        row = tile.row_end;
        if (m.every_pass) {
          order.push_back(t);
          pass_bytes += bytes;
        }
      }
      EXPECT_EQ(row, m.rows);
      EXPECT_LE(rows_most - rows_least, 1u);
    }
    EXPECT_EQ(schedule.order(), order);
    EXPECT_EQ(schedule.pass_bytes(), pass_bytes);
    EXPECT_EQ(schedule.slot_bytes_max(), slot_max);
  }
}

// A tile has the shared rows of all its rows, wherever it begins.
TEST(Schedule, TilesCoverWhatRowsShare) {
  std::mt19937_64 random(12);
  for (int round = 0; round < 300; ++round) {
    ScheduledMatrix m;
    m.rows = 1 + random() % 1000;
    m.part_count = 2;
    m.parts[0] = {0, 1000, 1 + random() % 300};
    m.parts[1] = {.file = 1,
                  .offset = 50,
                  .row_bytes = 1 + random() % 30,
                  .shared_by = static_cast<uint32_t>(1 + random() % 200)};
    m.parts[1].rows_above =
        static_cast<uint32_t>(random() % m.parts[1].shared_by);
    const Schedule schedule({m}, 1 + random() % 20'000, 512);
    const MatrixPart& part = m.parts[1];
    uint64_t row = 0;
    for (const Tile& tile : schedule.tiles()) {
      EXPECT_EQ(tile.row_begin, row);
      row = tile.row_end;
      const auto shared = [&](uint64_t r) {
        return part.offset +
               (part.rows_above + r) / part.shared_by * part.row_bytes;
      };
      EXPECT_EQ(tile.parts[1].offset, shared(tile.row_begin));
      EXPECT_EQ(tile.parts[1].offset + tile.parts[1].bytes,
                shared(tile.row_end - 1) + part.row_bytes);
      EXPECT_EQ(part.above(tile.row_begin),
                (part.rows_above + tile.row_begin) % part.shared_by);
    }
    EXPECT_EQ(row, m.rows);
    EXPECT_EQ(m.bytes(),
              m.rows * m.parts[0].row_bytes + shared_bytes(part, m.rows));
  }
}

TEST(Schedule, AMatrixWithoutRowsHasNoTiles) {
  ScheduledMatrix m;
  m.part_count = 1;
  m.parts[0].row_bytes = 10;
  const Schedule schedule({m}, 1000, 512);
  EXPECT_TRUE(schedule.tiles().empty());
  EXPECT_EQ(schedule.pass_bytes(), 0u);
  EXPECT_EQ(schedule.slot_bytes_max(), 0u);
}

}  // namespace
}  // namespace mlx_flash
