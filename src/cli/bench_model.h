// SPDX-License-Identifier: MIT
#pragma once

// `mlx-flash bench` of a model under a budget: prefill and decode, once or
// several times.

#include <cstddef>
#include <cstdint>
#include <span>

#include "cli/options.h"
#include "mlx_flash/stats.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

struct BenchModelOptions {
  EngineOptions engine;
  uint32_t prompt_tokens = 128;
  uint32_t generated_tokens = 32;
  uint32_t runs = 1;
  bool warm_up = false;
  bool probe = false;
  bool json = false;
};

// Prints; the process's exit code.
Result<int> bench_model(const BenchModelOptions& options);

// How decoding used a disk that gives `disk_bytes_per_s` to nobody else.
struct DiskUse {
  double share = 0;  // bytes of decoding per second, of that rate
  // Of the time that reading or computing, whichever is less, would have taken
  // alone: what the other hid. 1: decoding took as long as the longer of them;
  // 0: as long as both one after the other. Nothing to hide: 1.
  double overlap = 0;
  double stall = 0;  // share of the time in which computing waited for reads
};
DiskUse disk_use(const GenerationStats& stats, double disk_bytes_per_s);

// The run whose decode rate is the median; of an even number the slower of the
// two in the middle. REQUIRES: runs is not empty.
size_t median_run(std::span<const GenerationStats> runs);

}  // namespace mlx_flash
