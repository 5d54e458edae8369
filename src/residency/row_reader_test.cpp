// SPDX-License-Identifier: MIT
#include "residency/row_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "io/read_queue_sim.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

class RowReaderTest : public testing::Test {
 protected:
  RowReaderTest() {
    matrix.name = "embed_tokens";
    matrix.rows = 100;
    matrix.part_count = 3;
    matrix.parts = {{{0, 777, 700}, {1, 13, 90}, {1, 9013 + 5, 33}}};
    files.push_back(File::described("weights", 777 + 700 * 100, 512));
    files.push_back(File::described("scales", 20000, 512));
  }

  void open(SimReadQueue::Options options, uint32_t rows_kept) {
    queue = std::make_unique<SimReadQueue>(std::move(options));
    auto made = RowReader::create(matrix, 512, files, *queue, rows_kept);
    ASSERT_TRUE(made.ok()) << made.status().message();
    reader = std::move(made).value();
  }

  Status read(const std::vector<uint32_t>& rows) {
    size_t next = 0;
    Status status =
        reader->read(rows, [&](size_t i, const RowReader::View& view) {
          EXPECT_EQ(i, next++);
          EXPECT_EQ(view.row, rows[i]);
          for (uint32_t p = 0; p < 3; ++p) {
            const MatrixPart& part = matrix.parts[p];
            std::vector<std::byte> want(part.row_bytes);
            sim_fill(files[part.file].path(),
                     part.offset + (part.rows_above + rows[i]) /
                                       part.shared_by * part.row_bytes,
                     want);
            EXPECT_EQ(std::memcmp(want.data(), view.part[p], want.size()), 0)
                << "row " << rows[i] << " part " << p;
          }
        });
    if (status.ok()) {
      EXPECT_EQ(next, rows.size());
    }
    return status;
  }

  ScheduledMatrix matrix;
  std::vector<File> files;
  std::unique_ptr<SimReadQueue> queue;
  std::unique_ptr<RowReader> reader;
};

TEST_F(RowReaderTest, GivesTheBytesOfAnyRowsInAnyOrder) {
  for (const uint32_t kept : {1u, 2u, 7u, 64u, 200u}) {
    SimReadQueue::Options options;
    options.seed = kept;
    options.short_rate = 0.2;
    open(options, kept);
    std::mt19937 random(kept);
    for (int call = 0; call < 50; ++call) {
      std::vector<uint32_t> rows(random() % 150);
      for (uint32_t& row : rows) row = static_cast<uint32_t>(random() % 100);
      EXPECT_TRUE(read(rows).ok());
    }
    EXPECT_TRUE(read({0, 99, 99, 0}).ok());
  }
}

TEST_F(RowReaderTest, GivesTheBytesThatRowsShare) {
  matrix.parts[1].shared_by = 7;
  matrix.parts[1].rows_above = 3;
  open({}, 5);
  EXPECT_TRUE(read({0, 3, 4, 99, 10, 11, 12, 4, 0}).ok());
  // (3 + 99) / 7 = 14: fifteen rows are there, and must be.
  files[1] = File::described("scales", 13 + 15 * 90, 512);
  matrix.part_count = 2;
  EXPECT_TRUE(RowReader::create(matrix, 512, files, *queue, 5).ok());
  files[1] = File::described("scales", 13 + 15 * 90 - 1, 512);
  EXPECT_FALSE(RowReader::create(matrix, 512, files, *queue, 5).ok());
}

TEST_F(RowReaderTest, KeepsRecentRowsAndReadsThemOnce) {
  open({}, 4);
  EXPECT_TRUE(read({5, 5, 6, 5}).ok());
  const uint64_t bytes = reader->stats().bytes_read;
  EXPECT_EQ(queue->stats().reads, 2u * 3);
  EXPECT_TRUE(read({6, 5}).ok());
  EXPECT_EQ(reader->stats().bytes_read, bytes);
  EXPECT_EQ(reader->stats().hits, 4u);
  EXPECT_TRUE(read({1, 2, 3}).ok());  // the older of 5 and 6 makes room
  EXPECT_EQ(queue->stats().reads, 5u * 3);
}

TEST_F(RowReaderTest, ReadsTheRowsOfACallInParallel) {
  SimReadQueue::Options slow;
  slow.latency_min_s = slow.latency_max_s = 1e-3;
  slow.depth = 64;
  open(slow, 64);
  std::vector<uint32_t> rows(20);
  for (uint32_t i = 0; i < 20; ++i) rows[i] = i;
  EXPECT_TRUE(read(rows).ok());
  EXPECT_LT(queue->now(), 3e-3);  // not 20 times the latency
}

TEST_F(RowReaderTest, ReportsErrorsWithPlaceAndRecovers) {
  bool broken = true;
  SimReadQueue::Options options;
  options.fault = [&](const ReadRequest& r) {
    return broken && r.file->path() == "scales" && r.offset == 512 ? EIO : 0;
  };
  open(options, 8);
  const Status status = read({1, 10, 20});  // row 10's scales lie at 913
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_THAT(status.message(), HasSubstr("embed_tokens"));
  EXPECT_THAT(status.message(), HasSubstr("scales"));
  EXPECT_THAT(status.message(), HasSubstr("offset 512"));
  EXPECT_TRUE(read({1}).ok());
  EXPECT_FALSE(read({10}).ok());
  broken = false;
  EXPECT_TRUE(read({10, 1, 20}).ok());
}

TEST_F(RowReaderTest, RefusesRowsBeyondTheMatrixAndMatricesBeyondTheFile) {
  open({}, 8);
  EXPECT_EQ(read({3, 100}).code(), StatusCode::kInvalidInput);
  matrix.rows = 101;
  EXPECT_EQ(RowReader::create(matrix, 512, files, *queue).status().code(),
            StatusCode::kInvalidInput);
  matrix.rows = UINT64_MAX / 2;
  EXPECT_FALSE(RowReader::create(matrix, 512, files, *queue).ok());
}

}  // namespace
}  // namespace mlx_flash
