// SPDX-License-Identifier: MIT
#include "residency/expert_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "residency/expert_share.h"
#include "residency/plan.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

constexpr uint64_t kAlignment = 4096;

// Gate, up and down of one part each, stacked, or one expert behind the other.
std::vector<ExpertLayer> make_layers(uint32_t count,
                                     uint32_t experts,
                                     uint64_t row_bytes,
                                     bool stacked) {
  std::vector<ExpertLayer> layers(count);
  uint64_t at = 100;
  for (ExpertLayer& layer : layers) {
    layer.name = "layer";
    layer.experts = experts;
    layer.active = 2;
    layer.matrices.resize(3);
    for (ExpertMatrix& m : layer.matrices) {
      m.rows = 64;
      m.cols = 64;
      m.part_count = 1;
      m.parts.resize(experts);
    }
    for (uint32_t i = 0; i < 3 * experts; ++i) {
      const uint32_t matrix = stacked ? i / experts : i % 3;
      const uint32_t expert = stacked ? i % experts : i / 3;
      layer.matrices[matrix].parts[expert][0] = {0, at, row_bytes};
      at += 64 * row_bytes;
    }
  }
  return layers;
}

TEST(ExpertSchedule, PartsThatTouchAreReadAsOne) {
  const auto apart = make_layers(1, 8, 1000, true);
  const auto together = make_layers(1, 8, 1000, false);
  const ExpertSchedule stacked(apart, 1 << 20, kAlignment);
  const ExpertSchedule beside(together, 1 << 20, kAlignment);
  ExpertPieceLayout layout;
  stacked.layout(3, 0, &layout);
  EXPECT_EQ(layout.range_count, 3u);
  beside.layout(3, 0, &layout);
  EXPECT_EQ(layout.range_count, 1u);
  EXPECT_EQ(layout.bytes, 3u * 64000);
  EXPECT_EQ(layout.ranges[0].offset % kAlignment, 0u);
  EXPECT_EQ(layout.ranges[0].bytes % kAlignment, 0u);
  EXPECT_LE(layout.ranges[0].bytes, layout.bytes + 2 * kAlignment);
  // Where the file has it, counted from the range's beginning.
  const MatrixPart& up = together[0].matrices[1].parts[3][0];
  EXPECT_EQ(layout.rows[1].at[0],
            layout.ranges[0].home + up.offset - layout.ranges[0].offset);
}

TEST(ExpertSchedule, PiecesCoverEveryRowOnceInOrder) {
  const auto layers = make_layers(2, 4, 1000, true);
  for (const uint64_t most :
       {1ull, 1000ull, 30'000ull, 70'000ull, 1ull << 30}) {
    const ExpertSchedule schedule(layers, most, kAlignment);
    ExpertPieceLayout layout;
    uint32_t matrix = 0;
    uint32_t row = 0;
    for (uint32_t i = 0; i < schedule.pieces_of(1); ++i) {
      schedule.layout(schedule.slab(1, 2), i, &layout);
      EXPECT_EQ(layout.bytes, schedule.piece_bytes(1, i));
      EXPECT_LE(layout.bytes, std::max<uint64_t>(most, 1000));
      for (uint32_t r = 0; r < layout.rows_count; ++r) {
        EXPECT_EQ(layout.rows[r].matrix, matrix);
        EXPECT_EQ(layout.rows[r].row_begin, row);
        row = layout.rows[r].row_end;
        if (row < 64) continue;
        ++matrix;
        row = 0;
      }
    }
    EXPECT_EQ(matrix, 3u);
  }
}

// Scales of 24 rows: pieces that begin inside of a block read its row again.
TEST(ExpertSchedule, PiecesHaveWhatTheirRowsShare) {
  auto layers = make_layers(1, 4, 1000, true);
  for (ExpertMatrix& m : layers[0].matrices) {
    m.part_count = 2;
    for (auto& parts : m.parts) {
      parts[1] = {.file = 1,
                  .offset = parts[0].offset,
                  .row_bytes = 10,
                  .shared_by = 24};
    }
  }
  ASSERT_TRUE(ExpertSchedule::check(layers).ok());
  const ExpertSchedule whole(layers, 1 << 20, kAlignment);
  EXPECT_EQ(whole.pieces_of(0), 1u);
  EXPECT_EQ(whole.slab_bytes(0), 3u * (64 * 1000 + 3 * 10));
  EXPECT_EQ(whole.piece_bytes(0, 0), whole.slab_bytes(0));
  const ExpertSchedule cut(layers, 10'000, kAlignment);
  ExpertPieceLayout layout;
  for (uint32_t i = 0; i < cut.pieces_of(0); ++i) {
    cut.layout(cut.slab(0, 2), i, &layout);
    for (uint32_t r = 0; r < layout.rows_count; ++r) {
      const auto& rows = layout.rows[r];
      const uint64_t want = layers[0].matrices[rows.matrix].parts[2][1].offset +
                            rows.row_begin / 24 * 10;
      const auto holds = [&](const ExpertRange& range) {
        return range.file == 1 && range.home <= rows.at[1] &&
               range.offset + (rows.at[1] - range.home) == want &&
               rows.at[1] - range.home + 10 <= range.bytes_min;
      };
      EXPECT_TRUE(std::any_of(layout.ranges.begin(),
                              layout.ranges.begin() + layout.range_count,
                              holds))
          << i;
    }
  }
  for (auto& parts : layers[0].matrices[0].parts) parts[1].shared_by = 25;
  layers[0].matrices[0].parts[3][1].shared_by = 24;
  EXPECT_FALSE(ExpertSchedule::check(layers).ok());
}

TEST(ExpertSchedule, SizesThatDifferBySlackAreOneClass) {
  const auto layers = make_layers(3, 8, 1000, true);
  const ExpertSchedule schedule(layers, 1 << 20, 512);
  EXPECT_EQ(schedule.classes(4096).size(), 1u);
  EXPECT_EQ(schedule.classes(4096)[0].pieces, 24u);
  auto mixed = make_layers(3, 8, 1000, true);
  for (auto& parts : mixed[1].matrices[2].parts) parts[0].row_bytes = 500;
  const ExpertSchedule two(mixed, 1 << 20, 512);
  EXPECT_EQ(two.classes(4096).size(), 2u);
  EXPECT_NE(two.class_of(0, 0), two.class_of(1, 0));
}

TEST(ExpertSchedule, APartBehindTheEndOfItsFileIsNamed) {
  const auto layers = make_layers(1, 8, 1000, true);
  const ExpertSchedule schedule(layers, 1 << 20, 512);
  std::vector<File> files;
  files.push_back(File::described("weights", 100 + 3 * 8 * 64000, 512));
  EXPECT_TRUE(schedule.check_files(files).ok());
  files[0] = File::described("weights", 99 + 3 * 8 * 64000, 512);
  const Status status = schedule.check_files(files);
  EXPECT_EQ(status.code(), StatusCode::kInvalidInput);
  EXPECT_THAT(status.message(), HasSubstr("expert 7"));
}

// --- Plans ----------------------------------------------------------------

std::vector<ScheduledMatrix> dense_matrices() {
  std::vector<ScheduledMatrix> matrices;
  for (int i = 0; i < 8; ++i) {
    ScheduledMatrix m;
    m.name = "attention";
    m.rows = 512;
    m.part_count = 1;
    m.parts[0] = {0, 0, 4096};
    m.every_pass = i > 0;
    matrices.push_back(m);
  }
  return matrices;
}

Limits limits_of(uint64_t ram) {
  Limits limits;
  limits.ram_bytes = ram;
  limits.runtime_bytes = 10'000'000;
  limits.disk_bytes_per_s = 1e9;
  limits.context = 256;
  return limits;
}

TEST(ExpertPlan, EveryTokenTilesComeBeforeExpertsAndTablesAfter) {
  const auto layers = make_layers(16, 64, 4096, true);  // 805 MB
  const auto matrices = dense_matrices();               // 8 times 2 MiB
  double before = -1;
  double speed = 0;
  for (const uint64_t ram : {30u, 100u, 300u, 600u, 900u}) {
    auto planned = plan_model(
        matrices, 4096, 0, ModelCosts(), limits_of(ram * 1'000'000), layers);
    ASSERT_TRUE(planned.ok()) << planned.status().message();
    const Plan& plan = planned->plan;
    EXPECT_EQ(plan.streamed_bytes, 0u) << ram;
    EXPECT_GT(plan.expert_bytes, 0u);
    EXPECT_LE(plan.runtime_bytes + plan.ring_bytes + plan.pinned_slot_bytes +
                  plan.expert_bytes + plan.kv_bytes,
              ram * 1'000'000);
    EXPECT_GT(plan.expert_hit_rate, before);
    // Unknown (0) when nothing is read: how fast computing is was not said.
    if (plan.expert_hit_rate < 1) {
      EXPECT_GE(plan.predicted_decode_tok_s, speed);
    }
    before = plan.expert_hit_rate;
    speed = plan.predicted_decode_tok_s;
    // The table that is read by the row is pinned when all experts are there.
    const bool all = plan.expert_bytes == plan.expert_bytes_all;
    EXPECT_EQ(plan.pinned[0], all) << ram;
    EXPECT_EQ(all, ram == 900) << ram;
  }
  EXPECT_EQ(before, 1);
}

TEST(ExpertPlan, TheMinimumWorksAndOneByteLessIsRefused) {
  const auto layers = make_layers(4, 16, 40960, true);
  const auto matrices = dense_matrices();
  auto refused = plan_model(
      matrices, 4096, 0, ModelCosts(), limits_of(10'100'000), layers);
  ASSERT_FALSE(refused.ok());
  EXPECT_THAT(refused.status().message(), HasSubstr("for experts"));
  auto roomy = plan_model(
      matrices, 4096, 0, ModelCosts(), limits_of(1'000'000'000), layers);
  const uint64_t least = roomy->plan.ram_min_bytes;
  auto smallest =
      plan_model(matrices, 4096, 0, ModelCosts(), limits_of(least), layers);
  ASSERT_TRUE(smallest.ok()) << smallest.status().message();
  EXPECT_GE(smallest->plan.expert_bytes,
            expert_memory_min(*smallest->experts, 4096));
  EXPECT_FALSE(
      plan_model(matrices, 4096, 0, ModelCosts(), limits_of(least - 1), layers)
          .ok());
}

TEST(ExpertPlan, WhatWasLearntPredictsBetterThanTheShape) {
  const auto layers = make_layers(4, 64, 4096, true);
  const ExpertSchedule schedule(layers, 8 << 20, 4096);
  const std::vector<ExpertFrequency::Layer> shapes(4, {64, 2});
  ExpertFrequency frequency(shapes);
  EXPECT_EQ(learnt_hit_rate(schedule, frequency, 0.1),
            expected_hit_rate(schedule, 0.1));
  const uint32_t always[] = {3, 5};
  const uint32_t rows[] = {1, 1};
  for (int t = 0; t < 100; ++t) {
    for (uint32_t l = 0; l < 4; ++l) frequency.use(l, always, rows);
  }
  EXPECT_NEAR(learnt_hit_rate(schedule, frequency, 0.1), 1, 1e-6);
  EXPECT_NEAR(learnt_hit_rate(schedule, frequency, 4.01 / 256), 0.5, 1e-6);
  EXPECT_LT(expected_hit_rate(schedule, 0.1), 0.6);
}

}  // namespace
}  // namespace mlx_flash
