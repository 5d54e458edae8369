// SPDX-License-Identifier: MIT
#include "residency/weight_budget.h"

#include <gtest/gtest.h>

#include "io/read_queue_sim.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Eight tiles of 1 MiB that every token uses, and 32 experts of 1 MiB.
class WeightBudgetTest : public testing::Test {
 protected:
  WeightBudgetTest() : queue_(SimReadQueue::Options()) {
    ScheduledMatrix m;
    m.name = "attention";
    m.rows = 8 * 256;
    m.part_count = 1;
    m.parts[0] = {0, 0, 4096};
    ExpertLayer layer;
    layer.name = "mlp";
    layer.experts = 32;
    layer.active = 2;
    layer.matrices.resize(1);
    layer.matrices[0].rows = 256;
    layer.matrices[0].part_count = 1;
    for (uint64_t e = 0; e < 32; ++e) {
      layer.matrices[0].parts.push_back({MatrixPart{0, (8 + e) * kMiB, 4096}});
    }
    layers_.push_back(layer);
    files_.push_back(File::described("weights", 40 * kMiB, 4096));
    Limits limits;
    limits.ram_bytes = 31 * kMiB;
    limits.context = 256;
    planned_.emplace(
        plan_model({m}, 4096, kMiB, ModelCosts(), limits, layers_).value());
    const uint64_t addresses =
        TileStream::address_bytes(planned_->schedule, planned_->plan, 4096) +
        CachedExperts::address_bytes(*planned_->experts, 4096);
    arena_ = std::move(Arena::create(addresses, 31 * kMiB)).value();
    tiles_ =
        std::move(
            TileStream::create(
                planned_->schedule, planned_->plan, *arena_, queue_, files_))
            .value();
    experts_ = std::move(CachedExperts::create(*planned_->experts,
                                               planned_->plan.expert_bytes,
                                               *arena_,
                                               queue_,
                                               files_))
                   .value();
    weights_.emplace(planned_->plan,
                     4096,
                     planned_->schedule,
                     *tiles_,
                     &*planned_->experts,
                     experts_.get());
  }

  void use_all_experts() {
    for (uint32_t e = 0; e < 32; e += 2) {
      const uint32_t chosen[] = {e, e + 1};
      const uint32_t rows[] = {1, 1};
      ASSERT_TRUE(experts_->begin(0, chosen, rows).ok());
      for (;;) {
        const auto piece = experts_->next();
        ASSERT_TRUE(piece.ok()) << piece.status().message();
        if (*piece == nullptr) break;
        experts_->release();
      }
      experts_->end();
    }
  }

  uint64_t pinned() const {
    uint64_t n = 0;
    for (TileId t = 0; t < planned_->schedule.tiles().size(); ++t) {
      TileStream::View view;
      if (tiles_->peek_pinned(t, &view)) ++n;
    }
    return n;
  }

  std::vector<ExpertLayer> layers_;
  std::vector<File> files_;
  SimReadQueue queue_;
  std::optional<ScheduleAndPlan> planned_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<TileStream> tiles_;
  std::unique_ptr<CachedExperts> experts_;
  std::optional<WeightBudget> weights_;
};

TEST_F(WeightBudgetTest, ExpertsYieldFirstAndComeBack) {
  for (TileId t = 0; t < planned_->schedule.tiles().size(); ++t) {
    ASSERT_TRUE(tiles_->acquire(t).ok());
    tiles_->release(t);
  }
  tiles_->end_pass();
  use_all_experts();
  const uint64_t whole = weights_->bytes();
  const uint64_t tiles = planned_->plan.pinned_slot_bytes;
  EXPECT_EQ(tiles, 8 * kMiB);
  EXPECT_EQ(pinned(), 8u);
  EXPECT_EQ(whole - tiles, planned_->plan.expert_bytes);
  EXPECT_LT(weights_->promised_bytes(), kMiB);
  EXPECT_GT(experts_->resident_bytes(), 10 * kMiB);

  ASSERT_TRUE(weights_->move(tiles + 4 * kMiB).ok());
  EXPECT_EQ(pinned(), 8u);
  EXPECT_LE(experts_->resident_bytes(), 4 * kMiB);
  use_all_experts();
  EXPECT_LE(experts_->resident_bytes(), 4 * kMiB);

  // Below that tiles give way, and experts keep what they need.
  ASSERT_TRUE(weights_->move(6 * kMiB).ok());
  EXPECT_LT(pinned(), 5u);
  EXPECT_LE(experts_->resident_bytes(), 3 * kMiB);
  use_all_experts();
  EXPECT_GT(experts_->resident_bytes(), 0u);

  ASSERT_TRUE(weights_->move(whole).ok());
  use_all_experts();
  EXPECT_GT(experts_->resident_bytes(), 10 * kMiB);
  EXPECT_LE(arena_->committed_bytes(), arena_->budget_bytes());
}

}  // namespace
}  // namespace mlx_flash
