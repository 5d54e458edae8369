// SPDX-License-Identifier: MIT
#include "residency/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "residency/expert_share.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMB = 1'000'000;

ScheduledMatrix matrix(uint64_t rows, uint64_t row_bytes, bool every = true) {
  ScheduledMatrix m;
  m.name = "m";
  m.rows = rows;
  m.part_count = 1;
  m.parts[0] = {0, 4711, row_bytes};
  m.every_pass = every;
  return m;
}

// About the shape of a 135M model in 4 bits: 30 layers of seven matrices, an
// embedding that is also the head.
std::vector<ScheduledMatrix> small_model() {
  std::vector<ScheduledMatrix> matrices;
  for (int layer = 0; layer < 30; ++layer) {
    for (const uint64_t rows : {576, 192, 192, 576, 1536, 1536}) {
      matrices.push_back(matrix(rows, 360));
    }
    matrices.push_back(matrix(576, 960));
  }
  matrices.push_back(matrix(49152, 612));
  return matrices;
}

ModelCosts small_costs() {
  ModelCosts costs;
  costs.small_tensor_bytes = 150'000;
  costs.kv_bytes_per_token = 23'040;
  costs.activation_fixed_bytes = 1 * kMB;
  costs.activation_bytes_per_row = 40'000;
  costs.activation_bytes_per_logit_row = 200'000;
  costs.context_max = 8192;
  return costs;
}

Limits small_limits(uint64_t ram) {
  Limits limits;
  limits.ram_bytes = ram;
  limits.runtime_bytes = 12 * kMB;
  limits.runtime_spare_bytes = 1 * kMB;
  return limits;
}

// What must hold for every plan that is given.
void expect_sound(const Schedule& schedule,
                  const ModelCosts& costs,
                  const Limits& limits,
                  const Plan& plan) {
  const uint64_t arena =
      plan.ring_bytes + plan.pinned_slot_bytes + plan.kv_bytes;
  const uint64_t used = plan.runtime_bytes + plan.small_tensor_bytes +
                        plan.activation_bytes + arena + plan.page_table_bytes;
  EXPECT_EQ(plan.predicted_peak_bytes,
            std::min(limits.ram_bytes, used + plan.prefill_activation_bytes) -
                plan.kv_bytes / 2 - limits.runtime_spare_bytes);
  EXPECT_LE(used, limits.ram_bytes);
  EXPECT_GE(plan.page_table_bytes, arena / limits.page_bytes * 8);
  EXPECT_LE(plan.ram_min_bytes, limits.ram_bytes);
  // When the context is full and a prompt is read, pins have yielded, all else
  // stays.
  EXPECT_EQ(plan.kv_reuse_bytes, limits.kv_reuse_bytes);
  const uint64_t full =
      plan.ring_bytes + plan.kv_bytes_max + plan.kv_reuse_bytes;
  EXPECT_LE(plan.runtime_bytes + plan.small_tensor_bytes +
                plan.activation_bytes + plan.prefill_activation_bytes + full +
                page_table_bytes(full, limits.page_bytes),
            limits.ram_bytes);
  EXPECT_GE(plan.ring_slots, 2u);
  EXPECT_EQ(plan.ring_bytes, plan.ring_slots * plan.slot_bytes);
  EXPECT_GE(plan.slot_bytes, schedule.slot_bytes_max());
  EXPECT_EQ(plan.slot_bytes % limits.page_bytes, 0u);
  EXPECT_EQ(plan.pinned_bytes + plan.streamed_bytes, plan.pass_bytes);
  EXPECT_LE(plan.kv_bytes, plan.kv_bytes_max);
  EXPECT_GE(plan.context, 1u);
  EXPECT_GE(plan.kv_bytes_max, plan.context * costs.kv_bytes_per_token);
  EXPECT_GE(plan.prefill_rows, 1u);
  EXPECT_GE(plan.logit_rows, 1u);
  EXPECT_LE(plan.logit_rows, plan.prefill_rows);
  if (limits.context > 0) {
    EXPECT_EQ(plan.context, limits.context);
  }
  if (limits.prefill_rows > 0) {
    EXPECT_EQ(plan.prefill_rows, limits.prefill_rows);
  }
  EXPECT_LE(plan.context, costs.context_max);
  uint64_t pinned = 0;
  uint64_t slots = 0;
  for (TileId t = 0; t < plan.pinned.size(); ++t) {
    if (!plan.pinned[t]) continue;
    const Tile& tile = schedule.tiles()[t];
    slots += tile_memory_bytes(tile, limits.page_bytes);
    if (schedule.matrices()[tile.matrix].every_pass) pinned += tile.bytes;
  }
  EXPECT_EQ(pinned, plan.pinned_bytes);
  EXPECT_EQ(slots, plan.pinned_slot_bytes);
}

TEST(Plan, KeepsThePromiseForAnyModelAndNamesAMinimumThatWorks) {
  std::mt19937_64 random(5);
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    std::vector<ScheduledMatrix> matrices(1 + random() % 20);
    for (auto& m : matrices) {
      m = matrix(1 + random() % 3000, 1 + random() % 2000, random() % 6 > 0);
    }
    ModelCosts costs;
    costs.small_tensor_bytes = random() % kMB;
    costs.kv_bytes_per_token = random() % 3 == 0 ? 0 : random() % 100'000;
    costs.kv_block_tokens = uint64_t{1} << (random() % 8);
    costs.activation_fixed_bytes = random() % (2 * kMB);
    costs.activation_bytes_per_row = random() % 100'000;
    costs.activation_bytes_per_logit_row = random() % 500'000;
    costs.context_max = 1 + random() % 100'000;
    Limits limits;
    limits.page_bytes = random() % 2 == 0 ? 4096 : 16384;
    limits.runtime_bytes = random() % (20 * kMB);
    limits.ram_bytes = random() % (uint64_t{1} << (20 + random() % 10));
    if (random() % 3 == 0) {
      limits.context = 1 + random() % costs.context_max;
    }
    if (random() % 3 == 0) limits.kv_reuse_bytes = random() % (20 * kMB);
    if (random() % 3 == 0) limits.prefill_rows = 1 + random() % 600;
    const uint64_t tile = random() % 2 == 0 ? 0 : 1 + random() % (4 * kMB);

    auto made = plan_model(matrices, 4096, tile, costs, limits);
    if (!made.ok()) {
      ++refused;
      EXPECT_EQ(made.status().code(), StatusCode::kInvalidInput);
      // The minimum, as a caller learns it: from a budget without end.
      Limits endless = limits;
      endless.ram_bytes = UINT64_MAX / 4;
      const uint64_t least =
          plan_model(matrices, 4096, tile, costs, endless)->plan.ram_min_bytes;
      EXPECT_GT(least, limits.ram_bytes);
      limits.ram_bytes = least - 1;
      EXPECT_FALSE(plan_model(matrices, 4096, tile, costs, limits).ok());
      limits.ram_bytes = least;
      made = plan_model(matrices, 4096, tile, costs, limits);
      ASSERT_TRUE(made.ok()) << made.status().message();
      EXPECT_EQ(made->plan.ram_min_bytes, least);
    }
    expect_sound(made->schedule, costs, limits, made->plan);
    if (HasFailure()) {
      FAIL() << "round " << round;
    }
  }
  EXPECT_GT(refused, 100);
  EXPECT_LT(refused, 1400);
}

TEST(Plan, TheMessageNamesAMinimumThatWorks) {
  const auto matrices = small_model();
  const auto refused =
      plan_model(matrices, 4096, 0, small_costs(), small_limits(10 * kMB));
  ASSERT_FALSE(refused.ok());
  const std::string& text = refused.status().message();
  EXPECT_THAT(text, HasSubstr("10.0MB"));
  const std::string key = "smallest that works is ";
  const size_t at = text.find(key);
  ASSERT_NE(at, std::string::npos) << text;
  const double named = std::stod(text.substr(at + key.size()));
  const auto ram = static_cast<uint64_t>(named * 1e6 + 0.5);
  EXPECT_TRUE(
      plan_model(matrices, 4096, 0, small_costs(), small_limits(ram)).ok());
  EXPECT_FALSE(
      plan_model(matrices, 4096, 0, small_costs(), small_limits(ram - 200'000))
          .ok());
}

TEST(Plan, PromptsBorrowWhatDecodingKeepsPinned) {
  const Schedule schedule(small_model(), 256 << 10, 4096);
  Limits limits = small_limits(64 * kMB);
  limits.context = 1024;
  limits.ring_slots = 4;
  limits.prefill_rows = 1;
  const auto one = make_plan(schedule, small_costs(), limits);
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->prefill_activation_bytes, 0u);
  limits.prefill_rows = 200;
  const auto many = make_plan(schedule, small_costs(), limits);
  ASSERT_TRUE(many.ok());
  EXPECT_GE(many->prefill_activation_bytes,
            199 * small_costs().activation_bytes_per_row);
  EXPECT_EQ(many->activation_bytes, one->activation_bytes);
  // Less KV is set aside at once, so that a long context leaves room.
  EXPECT_GE(many->pinned_bytes, one->pinned_bytes);
  EXPECT_EQ(many->ring_slots, 4u);
}

TEST(Plan, MoreMemoryPinsMore) {
  const auto matrices = small_model();
  const Schedule schedule(matrices, 256 << 10, 4096);
  uint64_t last = 0;
  for (uint64_t ram = 50 * kMB; ram <= 200 * kMB; ram += 5 * kMB) {
    auto limits = small_limits(ram);
    limits.context = 1024;
    limits.prefill_rows = 64;
    const auto plan = make_plan(schedule, small_costs(), limits);
    ASSERT_TRUE(plan.ok());
    // KV at the start and rows with logits grow in steps.
    const uint64_t bytes = plan->pinned_bytes + plan->ring_bytes;
    EXPECT_GE(bytes + 5 * kMB, last);
    last = std::max(last, bytes);
  }
  EXPECT_GT(last, 90 * kMB);
}

TEST(Plan, AUsualTightBudgetIsSpentOnPins) {
  const auto made =
      plan_model(small_model(), 4096, 0, small_costs(), small_limits(64 * kMB));
  ASSERT_TRUE(made.ok());
  const Plan& plan = made->plan;
  EXPECT_GE(plan.ring_slots, 6u);
  EXPECT_LE(plan.ring_bytes, 6 * kMB);
  EXPECT_GE(plan.context, 1024u);
  EXPECT_GT(plan.pinned_bytes, 25 * kMB);
  EXPECT_GT(plan.streamed_bytes, 0u);
  // Less than one tile is left over.
  EXPECT_LT(64 * kMB - plan.predicted_peak_bytes,
            plan.slot_bytes + plan.kv_bytes / 2 + 1 * kMB + 200'000);
}

TEST(Plan, EverythingIsPinnedWhereItFitsAndTheRingIsTiny) {
  auto limits = small_limits(1000 * kMB);
  limits.disk_bytes_per_s = 0;
  limits.compute_bytes_per_s = 10e9;
  const auto made = plan_model(small_model(), 4096, 0, small_costs(), limits);
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made->plan.streamed_bytes, 0u);
  EXPECT_EQ(made->plan.ring_slots, 2u);
  EXPECT_EQ(made->plan.context, 8192u);
  EXPECT_THAT(made->plan.pinned, testing::Each(true));
  EXPECT_NEAR(made->plan.predicted_decode_tok_s,
              10e9 / static_cast<double>(made->plan.pass_bytes),
              1e-6);
}

TEST(Plan, TheRateIsThatOfTheSlowerOfDiskAndCompute) {
  auto limits = small_limits(64 * kMB);
  const auto rate = [&](double disk, double compute) {
    limits.disk_bytes_per_s = disk;
    limits.compute_bytes_per_s = compute;
    const auto made = plan_model(small_model(), 4096, 0, small_costs(), limits);
    return std::pair(made->plan.predicted_decode_tok_s, made->plan);
  };
  EXPECT_EQ(rate(0, 1e9).first, 0);
  auto [slow_disk, plan] = rate(1e8, 1e12);
  EXPECT_NEAR(slow_disk, 1e8 / static_cast<double>(plan.streamed_bytes), 1e-6);
  auto [slow_compute, other] = rate(1e12, 1e8);
  EXPECT_NEAR(slow_compute, 1e8 / static_cast<double>(other.pass_bytes), 1e-6);
}

TEST(Plan, AFullContextReadsWhatItsBlocksTookFromPinsAndItsBlocksOnDisk) {
  auto limits = small_limits(64 * kMB);
  limits.context = 2048;
  limits.disk_bytes_per_s = 1e8;
  auto made = plan_model(small_model(), 4096, 0, small_costs(), limits);
  ASSERT_TRUE(made.ok()) << made.status().message();
  const Plan& plan = made->plan;
  ASSERT_GT(plan.kv_bytes_max, plan.kv_bytes);
  EXPECT_NEAR(1e8 / plan.predicted_full_tok_s,
              static_cast<double>(plan.streamed_bytes + plan.kv_bytes_max -
                                  plan.kv_bytes),
              1);
  auto costs = small_costs();
  costs.kv_floor_bytes = limits.kv_ram_bytes = 2 * kMB;
  made = plan_model(small_model(), 4096, 0, costs, limits);
  ASSERT_TRUE(made.ok()) << made.status().message();
  ASSERT_GT(made->plan.kv_disk_bytes_max, 0u);
  EXPECT_NEAR(
      1e8 / made->plan.predicted_full_tok_s,
      static_cast<double>(made->plan.streamed_bytes + made->plan.kv_bytes_max -
                          made->plan.kv_bytes + made->plan.kv_disk_bytes_max),
      1);
}

TEST(Plan, AContextBeyondTheModelOrTheBudgetIsRefused) {
  auto limits = small_limits(64 * kMB);
  limits.context = 8193;
  auto made = plan_model(small_model(), 4096, 0, small_costs(), limits);
  EXPECT_THAT(made.status().message(), HasSubstr("8192"));
  limits.context = 8192;  // 189 MB
  made = plan_model(small_model(), 4096, 0, small_costs(), limits);
  EXPECT_EQ(made.status().code(), StatusCode::kInvalidInput);
  limits.context = UINT64_MAX;
  EXPECT_FALSE(plan_model(small_model(), 4096, 0, small_costs(), limits).ok());
}

TEST(Plan, HostileNumbersAreRefusedNotWrappedAround) {
  ModelCosts costs = small_costs();
  costs.kv_bytes_per_token = UINT64_MAX / 100;
  EXPECT_FALSE(
      plan_model(small_model(), 4096, 0, costs, small_limits(64 * kMB)).ok());
  costs = small_costs();
  costs.activation_bytes_per_row = UINT64_MAX;
  EXPECT_FALSE(
      plan_model(small_model(), 4096, 0, costs, small_limits(64 * kMB)).ok());
  auto limits = small_limits(64 * kMB);
  limits.prefill_rows = UINT64_MAX;
  EXPECT_FALSE(plan_model(small_model(), 4096, 0, small_costs(), limits).ok());
}

TEST(ChooseQueueDepth, SmallTilesNeedMoreReadsUnderWay) {
  constexpr uint64_t kKiB = 1024;
  EXPECT_EQ(choose_queue_depth(4096 * kKiB), 8u);
  EXPECT_EQ(choose_queue_depth(256 * kKiB), 8u);
  EXPECT_EQ(choose_queue_depth(160 * kKiB), 12u);
  EXPECT_EQ(choose_queue_depth(64 * kKiB), 16u);
  EXPECT_EQ(choose_queue_depth(0), 16u);

  const Schedule schedule(small_model(), 64 * kKiB, 4096);
  const auto plan = make_plan(schedule, small_costs(), small_limits(60 * kMB));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->queue_depth, choose_queue_depth(schedule.tile_bytes_max()));
}

// The cache's own tables count: with the geometry of a model of 58 x 256
// experts a budget is the smaller by them.
TEST(Plan, CountsTheTablesOfManyExperts) {
  std::vector<ExpertLayer> layers(58);
  for (size_t l = 0; l < layers.size(); ++l) {
    layers[l].name = "layer";
    layers[l].experts = 256;
    layers[l].active = 8;
    ExpertMatrix& matrix = layers[l].matrices.emplace_back();
    matrix.format = dense_format(DType::kBF16);
    matrix.rows = 6144;
    matrix.cols = 7168;
    matrix.part_count = 1;
    matrix.parts.resize(256);
    for (uint64_t e = 0; e < 256; ++e) {
      matrix.parts[e][0] = {0, (l * 256 + e) * 6144 * 4032, 4032};
    }
  }
  const ExpertSchedule experts(layers, 8 << 20, 4096);
  const uint64_t tables = expert_table_bytes(experts);
  EXPECT_GT(tables, 1'500'000u);
  EXPECT_LT(tables, 20'000'000u);
  const Schedule schedule(small_model(), 64 << 10, 4096);
  const ModelCosts model = small_costs();
  Limits limits = small_limits(4000 * kMB);
  limits.context = 256;
  const auto plan = make_plan(schedule, model, limits, &experts);
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->expert_table_bytes, tables);
  Limits least = limits;
  least.ram_bytes = plan->ram_min_bytes;
  EXPECT_TRUE(make_plan(schedule, model, least, &experts).ok());
  // What is there without experts, their two pieces, and the tables.
  const auto dense = make_plan(schedule, model, limits);
  ASSERT_TRUE(dense.ok());
  EXPECT_GE(plan->ram_min_bytes,
            dense->ram_min_bytes + tables +
                expert_memory_min(experts, limits.page_bytes));
}

TEST(ChoosePins, FitsTheBytesAndLeavesLessThanATile) {
  std::mt19937_64 random(9);
  const Schedule schedule(small_model(), 100'000, 4096);
  uint64_t all = 0;
  uint64_t largest = 0;
  for (const Tile& tile : schedule.tiles()) {
    all += tile_memory_bytes(tile, 4096);
    largest = std::max(largest, tile_memory_bytes(tile, 4096));
  }
  for (int round = 0; round < 100; ++round) {
    const uint64_t bytes = random() % (all + all / 10);
    const auto pins = choose_pins(schedule, bytes);
    uint64_t used = 0;
    for (TileId t = 0; t < pins.size(); ++t) {
      if (pins[t]) used += tile_memory_bytes(schedule.tiles()[t], 4096);
    }
    EXPECT_LE(used, bytes);
    EXPECT_TRUE(used + largest > bytes || used == all);
  }
}

TEST(ChoosePins, AreSpreadEvenlyOverThePass) {
  // 1000 equal tiles: any window has its share of pins, to within a few.
  const Schedule schedule({matrix(1000, 4096)}, 4096, 4096);
  ASSERT_EQ(schedule.order().size(), 1000u);
  for (uint64_t share = 1; share < 20; ++share) {
    const uint64_t count = 1000 * share / 20;
    // Each tile's offset is odd, so that it takes two pages.
    const auto pins = choose_pins(schedule, count * 8192);
    for (const size_t window : {10, 50, 200}) {
      for (size_t begin = 0; begin + window <= 1000; begin += 7) {
        double pinned = 0;
        for (size_t i = begin; i < begin + window; ++i) pinned += pins[i];
        const double want = static_cast<double>(window * share) / 20;
        EXPECT_NEAR(pinned, want, 3.0) << share << " " << begin;
      }
    }
  }
}

TEST(ChoosePins, ASmallerBudgetKeepsASubset) {
  const Schedule schedule({matrix(500, 4096)}, 4096, 4096);
  auto more = choose_pins(schedule, 500 * 8192);
  for (uint64_t count = 500; count-- > 0;) {
    auto less = choose_pins(schedule, count * 8192);
    for (size_t i = 0; i < less.size(); ++i) {
      EXPECT_TRUE(!less[i] || more[i]);
    }
    more = std::move(less);
  }
}

TEST(ChoosePins, TilesThatAreNotOfEveryPassComeLast) {
  const Schedule schedule(
      {matrix(100, 4096, false), matrix(100, 4096), matrix(50, 4096, false)},
      4096,
      4096);
  const auto pins = choose_pins(schedule, 110 * 8192);
  for (TileId t = 0; t < 100; ++t) {
    EXPECT_EQ(pins[t], t < 10);
    EXPECT_TRUE(pins[100 + t]);
  }
}

TEST(ChooseTileBytes, IsLargeForUsualBudgetsAndSmallForTinyOnes) {
  EXPECT_EQ(choose_tile_bytes(1 * kMB, 100 * kMB), kTileBytesMin);
  EXPECT_GE(choose_tile_bytes(300 * kMB, 1500 * kMB), 1u << 20);
  EXPECT_EQ(choose_tile_bytes(8000 * kMB, 40000 * kMB), kTileBytesMax);
  EXPECT_GE(choose_tile_bytes(64 * kMB, 98 * kMB), 256u << 10);
  EXPECT_EQ(choose_tile_bytes(0, 0), kTileBytesMin);
  EXPECT_EQ(choose_tile_bytes(UINT64_MAX, UINT64_MAX), kTileBytesMax);
}

}  // namespace
}  // namespace mlx_flash
