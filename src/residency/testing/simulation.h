// SPDX-License-Identifier: MIT
#pragma once

// What the simulations of streams share: seeded chance, a device of random
// manners, and the loop over seeds. FLASH_SEED=n in the environment runs only
// seed n; seeds and the hashes of their traces are printed, those of many in
// one.

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>

#include "io/read_queue_sim.h"

namespace mlx_flash::testing {

struct Dice {
  explicit Dice(uint64_t seed) : engine(seed) {}
  uint64_t below(uint64_t n) { return engine() % n; }
  uint64_t between(uint64_t low, uint64_t high) {
    return low + below(high - low + 1);
  }
  bool chance(double p) {
    return static_cast<double>(engine() >> 11) * 0x1p-53 < p;
  }
  std::mt19937_64 engine;
};

// Slow or fast, shallow or deep. With `faults` some reads come back short, are
// interrupted, or fail, a share of `failing` of them.
SimReadQueue::Options random_device(Dice& dice, bool faults, double failing);

// Whether FLASH_SEED chose one: it alone need not show everything.
bool one_seed();

// Runs `body` for seeds 1 to `count`, up to the first that fails, or for
// FLASH_SEED alone; prints what it returns, the hash of its trace.
void for_seeds(uint64_t count, const std::function<uint64_t(uint64_t)>& body);

}  // namespace mlx_flash::testing
