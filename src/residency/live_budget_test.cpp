// SPDX-License-Identifier: MIT
#include "residency/live_budget.h"

#include <gtest/gtest.h>

namespace mlx_flash {
namespace {

constexpr uint64_t kMB = 1'000'000;

LiveBudget::Sample allowed(uint64_t bytes) {
  LiveBudget::Sample sample;
  sample.allowed_bytes = bytes;
  return sample;
}

LiveBudget::Sample limited(uint64_t bytes) {
  LiveBudget::Sample sample;
  sample.limit_bytes = bytes;
  sample.allowed_bytes = bytes;
  return sample;
}

TEST(LiveBudget, StaysWhatWasAskedForWhereThereIsRoom) {
  LiveBudget live(1000 * kMB, false);
  for (int i = 0; i < 100; ++i) {
    const uint64_t free = (1500 + (i % 7) * 300) * kMB;
    EXPECT_EQ(live.update(i, allowed(free)), 1000 * kMB);
  }
  EXPECT_EQ(live.update(100, {}), 1000 * kMB);
}

TEST(LiveBudget, FollowsALimitDownAtOnceAndUpAfterAWhile) {
  LiveBudget live(1000 * kMB, false);
  EXPECT_EQ(live.update(0, limited(990 * kMB)), 990 * kMB) << "a hard limit";
  EXPECT_EQ(live.update(1, limited(500 * kMB)), 500 * kMB);
  EXPECT_EQ(live.update(2, limited(2000 * kMB)), 500 * kMB);
  EXPECT_EQ(live.update(3, limited(2000 * kMB)), 500 * kMB);
  EXPECT_EQ(live.update(4, limited(2000 * kMB)), 1000 * kMB);
  // A rise that does not last is not followed.
  EXPECT_EQ(live.update(5, limited(400 * kMB)), 400 * kMB);
  EXPECT_EQ(live.update(6, limited(900 * kMB)), 400 * kMB);
  EXPECT_EQ(live.update(7, limited(400 * kMB)), 400 * kMB);
  EXPECT_EQ(live.update(8, limited(900 * kMB)), 400 * kMB);
  EXPECT_EQ(live.update(9, limited(900 * kMB)), 400 * kMB);
  EXPECT_EQ(live.update(10, limited(900 * kMB)), 900 * kMB);
}

TEST(LiveBudget, ALimitOfThatSizeRoundedToPagesIsThatSize) {
  LiveBudget live(570'000'000, false);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(live.update(i, limited(569'999'360)), 570'000'000u);
  }
}

TEST(LiveBudget, OthersInTheGroupAreLeftTheirs) {
  LiveBudget live(1000 * kMB, false);
  LiveBudget::Sample sample = limited(1000 * kMB);
  sample.allowed_bytes = 985 * kMB;  // our own page tables, say
  EXPECT_EQ(live.update(0, sample), 1000 * kMB);
  sample.allowed_bytes = 700 * kMB;
  EXPECT_EQ(live.update(1, sample), 700 * kMB);
}

TEST(LiveBudget, AnAutomaticOneGrowsWithTheMachine) {
  LiveBudget live(950 * kMB, true);
  EXPECT_EQ(live.update(0, allowed(1000 * kMB)), 950 * kMB);
  EXPECT_EQ(live.update(1, allowed(1020 * kMB)), 950 * kMB) << "noise";
  live.update(2, allowed(2000 * kMB));
  EXPECT_EQ(live.update(4, allowed(2000 * kMB)), 1900 * kMB);
  EXPECT_EQ(live.update(5, allowed(600 * kMB)), 570 * kMB);
}

TEST(LiveBudget, YieldsUnderPressureAndRecovers) {
  LiveBudget live(1000 * kMB, false);
  LiveBudget::Sample sample = allowed(5000 * kMB);
  double now = 0;
  live.update(now, sample);
  for (int i = 0; i < 3; ++i) {
    now += 1;
    sample.stalled_s += 0.5;
    live.update(now, sample);
  }
  EXPECT_NEAR(static_cast<double>(live.budget()), 729e6, 1e6);
  for (int i = 0; i < 100; ++i) {
    now += 1;
    sample.stalled_s += 0.5;
    live.update(now, sample);
  }
  EXPECT_GE(live.budget(), 290 * kMB) << "not to nothing";
  for (int i = 0; i < 200; ++i) live.update(now += 1, sample);
  EXPECT_EQ(live.budget(), 1000 * kMB);
}

TEST(LiveBudget, WhatIsAskedForNewIsTakenAtOnce) {
  LiveBudget live(1000 * kMB, false);
  live.update(0, limited(500 * kMB));
  live.ask(2000 * kMB, false);
  EXPECT_EQ(live.budget(), 2000 * kMB);
  EXPECT_EQ(live.update(1, limited(500 * kMB)), 500 * kMB);
}

}  // namespace
}  // namespace mlx_flash
