// SPDX-License-Identifier: MIT
#include "residency/look_ahead_gate.h"

#include <gtest/gtest.h>

#include <random>

namespace mlx_flash {
namespace {

// Passes whose time goes with what they need, shorter or longer by `effect`
// with look-ahead; returns all time over that of never trying.
double run(LookAheadGate& gate, double effect, int passes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> noise(0, 0.02);
  std::uniform_int_distribution<uint64_t> bytes(200, 400);
  double all = 0;
  double never = 0;
  for (int i = 0; i < passes; ++i) {
    const uint64_t needed = bytes(random);
    const double plain =
        (0.05 + 1e-3 * static_cast<double>(needed)) * (1 + noise(random));
    const double seconds = gate.open() ? plain * (1 + effect) : plain;
    gate.end_pass(seconds, needed);
    all += seconds;
    never += plain;
  }
  return all / never;
}

TEST(LookAheadGate, StaysOnWhereItPays) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    LookAheadGate gate;
    EXPECT_LT(run(gate, -0.10, 1000, seed), 0.95);
    EXPECT_TRUE(gate.open());
    EXPECT_NEAR(gate.stats().gain, 0.10, 0.06);
  }
}

TEST(LookAheadGate, NeverCostsOnePercent) {
  for (const double effect : {0.0, 0.02, 0.1, 0.38}) {
    for (uint64_t seed = 1; seed <= 10; ++seed) {
      for (const int passes : {60, 200, 1000, 5000}) {
        LookAheadGate gate;
        EXPECT_LT(run(gate, effect, passes, seed), 1.01)
            << effect << " " << seed << " " << passes;
        EXPECT_GT(gate.stats().trials, 0u);
      }
    }
  }
}

TEST(LookAheadGate, OnePassIsEnoughToSeeADisaster) {
  LookAheadGate gate;
  EXPECT_LT(run(gate, 3, 1000, 1), 1.02);
  EXPECT_LT(gate.stats().open_passes, 2 * gate.stats().trials);
}

TEST(LookAheadGate, TurnsOffWhenItStopsPaying) {
  LookAheadGate gate;
  run(gate, -0.10, 600, 3);
  EXPECT_TRUE(gate.open());
  run(gate, 0.10, 1000, 4);
  const uint64_t before = gate.stats().open_passes;
  run(gate, 0.10, 1000, 5);
  EXPECT_LT(gate.stats().open_passes - before, 50u);
}

TEST(LookAheadGate, IsTriedAgainLater) {
  LookAheadGate gate;
  run(gate, 0.10, 400, 5);
  EXPECT_FALSE(gate.open());
  run(gate, -0.10, 2000, 6);
  EXPECT_TRUE(gate.open());
}

}  // namespace
}  // namespace mlx_flash
