// SPDX-License-Identifier: MIT
#include "residency/testing/simulation.h"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>

namespace mlx_flash::testing {

SimReadQueue::Options random_device(Dice& dice, bool faults, double failing) {
  SimReadQueue::Options o;
  o.seed = dice.engine();
  o.depth = static_cast<int>(dice.between(1, 12));
  o.latency_max_s = dice.chance(0.3) ? 5e-3 : 3e-4;
  o.bytes_per_s = dice.chance(0.5) ? 1e8 : 1e10;
  if (faults) {
    o.short_rate = dice.chance(0.5) ? 0.2 : 0;
    o.interrupt_rate = dice.chance(0.5) ? 0.1 : 0;
    o.eio_rate = dice.chance(0.5) ? failing : 0;
  }
  return o;
}

bool one_seed() {
  return std::getenv("FLASH_SEED") != nullptr;
}

void for_seeds(uint64_t count, const std::function<uint64_t(uint64_t)>& body) {
  if (one_seed()) {
    const uint64_t seed = std::strtoull(std::getenv("FLASH_SEED"), nullptr, 10);
    std::printf("seed %" PRIu64 ": trace %016" PRIx64 "\n", seed, body(seed));
    return;
  }
  uint64_t traces = 0;
  for (uint64_t seed = 1; seed <= count; ++seed) {
    SCOPED_TRACE("FLASH_SEED=" + std::to_string(seed));
    traces = traces * 31 + body(seed);
    if (::testing::Test::HasFailure()) return;
  }
  std::printf("seeds 1 to %" PRIu64 ": traces %016" PRIx64 "\n", count, traces);
}

}  // namespace mlx_flash::testing
