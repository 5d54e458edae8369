// SPDX-License-Identifier: MIT

// The controller in closed loop: a stream on a simulated device, and a compute
// that slows down with the square of the reads under way, as the memory bus
// does. Virtual time, so a second of it is exact.

#include "residency/bandwidth_controller.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "io/read_queue_sim.h"
#include "residency/tile_stream.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kTileBytes = 4096;
constexpr uint32_t kTiles = 256;
constexpr uint32_t kLayerTiles = 16;
constexpr double kComputePerTile = 1e-3;
constexpr double kComputePerPass = kTiles * kComputePerTile;
constexpr int kDepth = 8;

struct Case {
  // Seconds of a tile's transfer, in those of its compute.
  double transfer = 1.2;
  double contention = 2;  // slower by so many times with the queue full
  double jitter_s = 0;
  bool controller = true;
  // A layer's matrices, then attention, which uses none and takes most of the
  // time: what the ring lost is read again in a burst.
  bool attention = true;
  uint32_t ring_slots = 16;
};

double bytes_per_s(double transfer) {
  return static_cast<double>(kTileBytes) / (transfer * kComputePerTile);
}

Schedule make_schedule() {
  std::vector<ScheduledMatrix> matrices(kTiles);
  for (uint32_t i = 0; i < kTiles; ++i) {
    matrices[i].name = "m" + std::to_string(i);
    matrices[i].rows = 1;
    matrices[i].part_count = 1;
    matrices[i].parts[0] = {0, i * kTileBytes, kTileBytes};
  }
  return Schedule(std::move(matrices), kTileBytes, 4096);
}

SimReadQueue::Options device(const Case& c) {
  SimReadQueue::Options o;
  o.seed = 3;
  o.depth = kDepth;
  o.latency_min_s = 20e-6;
  o.latency_max_s = 20e-6 + c.jitter_s;
  o.bytes_per_s = bytes_per_s(c.transfer);
  return o;
}

class Loop {
 public:
  explicit Loop(const Case& c)
      : case_(c),
        schedule_(make_schedule()),
        queue_(device(c)),
        arena_(std::move(Arena::create(1 << 24, 1 << 24)).value()) {
    files_.push_back(File::described("file", kTiles * kTileBytes, 4096));
    plan_.ring_slots = c.ring_slots;
    plan_.slot_bytes = kTileBytes;
    plan_.pinned.assign(kTiles, false);
    for (uint32_t i = 0; i < kTiles; ++i) {
      plan_.pinned[i] = i % 2 == 0;
    }
    auto made = TileStream::create(schedule_,
                                   plan_,
                                   *arena_,
                                   queue_,
                                   files_,
                                   {.controller = c.controller});
    stream_ = std::move(made).value();
  }

  // Seconds of one pass.
  double pass() {
    const double start = queue_.now();
    for (const TileId tile : schedule_.order()) {
      EXPECT_TRUE(stream_->acquire(tile).ok());
      const bool last = tile % kLayerTiles == kLayerTiles - 1;
      compute(case_.attention ? (last ? 13 : 0.2) : 1);
      stream_->release(tile);
    }
    stream_->end_pass();
    stream_->check_invariants();
    return queue_.now() - start;
  }

  std::vector<double> passes(int count) {
    std::vector<double> seconds;
    for (int i = 0; i < count; ++i) seconds.push_back(pass());
    return seconds;
  }

  void set_transfer(double transfer) {
    queue_.set_bytes_per_s(bytes_per_s(transfer));
  }
  // Keeps one tile in `n`, as after a move of the budget.
  void pin_one_in(uint32_t n) {
    for (uint32_t i = 0; i < kTiles; ++i) plan_.pinned[i] = i % n == 0;
    EXPECT_TRUE(stream_->set_pins(plan_.pinned).ok());
  }
  BandwidthController::Stats stats() const {
    return stream_->stats().controller;
  }

 private:
  // In units of kComputePerTile, on an idle bus.
  void compute(double work) {
    const int slices = 16 * std::max(1, static_cast<int>(work));
    for (int i = 0; i < slices; ++i) {
      const double load = static_cast<double>(queue_.running()) / kDepth;
      queue_.advance(work * kComputePerTile / slices *
                     (1 + case_.contention * load * load));
    }
  }

  Case case_;
  Schedule schedule_;
  SimReadQueue queue_;
  std::vector<File> files_;
  std::unique_ptr<Arena> arena_;
  Plan plan_;
  std::unique_ptr<TileStream> stream_;
};

double mean(const std::vector<double>& values, size_t from) {
  return std::accumulate(values.begin() + static_cast<std::ptrdiff_t>(from),
                         values.end(),
                         0.0) /
         static_cast<double>(values.size() - from);
}

// Half of the tiles come from the disk.
double law_s(double transfer) {
  return kTiles / 2 * transfer * kComputePerTile;
}

TEST(BandwidthController, ReadBoundIsLeftAlone) {
  for (const bool attention : {false, true}) {
    Case c{.transfer = 6, .contention = 0.2, .attention = attention};
    Loop with(c);
    c.controller = false;
    Loop without(c);
    const double on = mean(with.passes(60), 4);
    const double off = mean(without.passes(60), 4);
    EXPECT_LE(on, 1.005 * off);
    EXPECT_LE(on, 1.03 * law_s(6)) << "the disk is the bottleneck";
    EXPECT_EQ(with.stats().paced_passes, 0u);
  }
}

TEST(BandwidthController, ComputeBoundIsPacedAndFasterForIt) {
  Case c{};
  Loop with(c);
  c.controller = false;
  Loop without(c);
  const double on = mean(with.passes(80), 40);
  const double off = mean(without.passes(80), 40);
  EXPECT_LE(on, 1.05 * kComputePerPass);
  EXPECT_GE(off, 1.05 * on) << "nothing to gain here: the test shows nothing";
  EXPECT_GE(with.stats().paced_passes, 40u);
  EXPECT_EQ(without.stats().paced_passes, 0u);
  EXPECT_TRUE(with.stats().paced);
}

TEST(BandwidthController, ComputeBoundWithoutContentionCostsNothing) {
  Case c{.contention = 0};
  Loop with(c);
  c.controller = false;
  Loop without(c);
  const double on = mean(with.passes(300), 0);
  const double off = mean(without.passes(300), 0);
  EXPECT_LE(on, 1.001 * off);
}

TEST(BandwidthController, FollowsADiskThatBecomesSlowAndFastAgain) {
  Loop loop({});
  loop.passes(60);
  EXPECT_TRUE(loop.stats().paced);
  loop.set_transfer(12);  // tenfold slower: reading is the bottleneck now
  const std::vector<double> slow = loop.passes(40);
  EXPECT_LE(mean(slow, 3), 1.05 * law_s(12));
  EXPECT_FALSE(loop.stats().paced);
  loop.set_transfer(1.2);
  const std::vector<double> fast = loop.passes(120);
  EXPECT_LE(mean(fast, 60), 1.05 * kComputePerPass);
  EXPECT_TRUE(loop.stats().paced);
}

// The budget halves and doubles while reading is the bottleneck: one pass later
// the disk is again all there is to wait for.
TEST(BandwidthController, IsBackAtTheLawTwoPassesAfterTheBudgetMoved) {
  const double transfer = 6;
  Loop loop({.transfer = transfer, .contention = 0.2, .attention = false});
  loop.passes(20);
  for (const uint32_t n : {4u, 2u, 8u, 1000u, 2u}) {
    loop.pin_one_in(n);
    loop.pass();
    const double streamed = kTiles - (kTiles + n - 1) / n;
    const double law = streamed * transfer * kComputePerTile;
    EXPECT_LE(mean(loop.passes(3), 0), 1.03 * law) << n;
    EXPECT_EQ(loop.stats().trials, 0u);
  }
}

TEST(BandwidthController, DoesNotOscillate) {
  // On the edge: reading takes about as long as computing.
  for (const double transfer : {1.7, 1.9, 2.0, 2.1, 2.3}) {
    Case c{.transfer = transfer, .jitter_s = 1e-3};
    Loop with(c);
    c.controller = false;
    Loop without(c);
    const double on = mean(with.passes(400), 8);
    const double off = mean(without.passes(400), 8);
    EXPECT_LE(on, 1.01 * off) << transfer;
    EXPECT_LE(with.stats().trials, 12u) << transfer;
  }
}

TEST(BandwidthController, ACompetingReaderIsNoReasonToStarve) {
  std::mt19937_64 dice(11);
  Case c{.jitter_s = 2e-3};
  Loop with(c);
  c.controller = false;
  Loop without(c);
  double on = 0;
  double off = 0;
  for (int i = 0; i < 300; ++i) {
    // Others take up to nine tenths of the device, for a pass at a time.
    const double transfer =
        dice() % 3 == 0 ? 0.6 * (1 + static_cast<double>(dice() % 10)) : 0.6;
    with.set_transfer(transfer);
    without.set_transfer(transfer);
    on += with.pass();
    off += without.pass();
  }
  EXPECT_LE(on, 1.01 * off);
}

TEST(BandwidthController, WhatAPromptTookIsNotWhatATokenTakes) {
  BandwidthController controller;
  const std::vector<uint64_t> demand(64, 1000);
  controller.set_demand(demand);
  double now = 0;
  const auto pass = [&](double per_tile) {
    for (uint64_t i = 0; i < demand.size(); ++i) {
      controller.on_acquire(i + 1, i + 4, now, 0);
      now += per_tile * (i % 7 == 0 ? 1.3 : 1);
    }
    controller.end_pass(now);
  };
  for (int i = 0; i < 3; ++i) {
    pass(1.0);  // a prompt in pieces
    pass(0.001);
  }
  EXPECT_EQ(controller.stats().trials, 0u);
  EXPECT_EQ(controller.ahead_rate(), 0);
}

}  // namespace
}  // namespace mlx_flash
