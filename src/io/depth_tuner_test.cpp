// SPDX-License-Identifier: MIT

// In closed loop with a device that is a formula: it gives `bytes_per_s` if
// enough reads are under way to hide `latency_s` of each.

#include "io/depth_tuner.h"

#include <gtest/gtest.h>

#include <random>

namespace mlx_flash {
namespace {

constexpr double kRead = 1 << 20;

struct Device {
  double bytes_per_s = 1e9;
  double latency_s = 3e-3;
  double noise = 0;  // of the time of a read, up and down

  double seconds(int depth, std::mt19937_64& dice) const {
    const double rate = std::min(bytes_per_s, depth * kRead / latency_s);
    const double unit = static_cast<double>(dice() >> 11) * 0x1p-53;
    return kRead / rate * (1 + noise * (2 * unit - 1));
  }
};

struct Loop {
  // Bytes per second over so many reads.
  double run(int reads, bool limited = true) {
    const double start = now;
    for (int i = 0; i < reads; ++i) {
      now += device.seconds(tuner.depth(), dice);
      tuner.on_finish(static_cast<uint64_t>(kRead), limited, now);
    }
    return reads * kRead / (now - start);
  }
  DepthTuner tuner{8, 32};
  Device device;
  std::mt19937_64 dice{5};
  double now = 0;
};

TEST(DepthTuner, FindsTheLeastDepthThatIsFullSpeed) {
  Loop loop;  // 3 reads hide the latency: 4, of the powers of two
  loop.run(20'000);
  EXPECT_EQ(loop.tuner.depth(), 4);
  loop.device.latency_s = 0.5e-3;
  loop.run(20'000);
  EXPECT_EQ(loop.tuner.depth(), 1);
}

TEST(DepthTuner, GoesDeeperWhereItGains) {
  Loop loop;
  loop.device.latency_s = 20e-3;  // 19 reads hide it
  loop.run(20'000);
  EXPECT_EQ(loop.tuner.depth(), 32);
  EXPECT_GE(loop.run(20'000), 0.99 * loop.device.bytes_per_s);
}

TEST(DepthTuner, CostsNextToNothingWhereTheDepthIsRight) {
  Loop loop;
  loop.device.latency_s = 7.9e-3;  // 8 are needed, and enough
  EXPECT_GE(loop.run(200'000), 0.995 * loop.device.bytes_per_s);
  EXPECT_EQ(loop.tuner.depth(), 8);
}

TEST(DepthTuner, NoiseDoesNotMoveIt) {
  Loop loop;
  loop.device.latency_s = 7.9e-3;
  loop.device.noise = 0.5;
  EXPECT_GE(loop.run(200'000), 0.98 * loop.device.bytes_per_s);
  EXPECT_GE(loop.tuner.depth(), 8);
  EXPECT_LE(loop.tuner.trials(), 60u);
}

TEST(DepthTuner, FollowsAnotherDevice) {
  Loop loop;
  loop.device.latency_s = 0.5e-3;
  loop.run(100'000);
  ASSERT_EQ(loop.tuner.depth(), 1);
  loop.device = {.bytes_per_s = 3e9, .latency_s = 10e-3};  // 29 reads
  loop.run(20'000);
  EXPECT_EQ(loop.tuner.depth(), 32);
}

TEST(DepthTuner, LearnsNothingWhileSomethingElseIsTheLimit) {
  Loop loop;
  loop.run(20'000, false);
  EXPECT_EQ(loop.tuner.depth(), 8);
  EXPECT_EQ(loop.tuner.trials(), 0u);
}

TEST(DepthTuner, AFixedDepthStays) {
  Loop loop;
  loop.tuner = DepthTuner(6, 0);
  loop.run(20'000);
  EXPECT_EQ(loop.tuner.depth(), 6);
}

}  // namespace
}  // namespace mlx_flash
