// SPDX-License-Identifier: MIT
#pragma once

// What tests put in the place of the machine's memory and disk.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "io/read_queue.h"
#include "kv/kv_file.h"
#include "residency/expert_stream.h"
#include "residency/live_budget.h"

namespace mlx_flash {

struct CoreHooks {
  // Wraps the queue all weights come through: faults are put there.
  std::function<std::unique_ptr<ReadQueue>(std::unique_ptr<ReadQueue>)>
      wrap_queue;
  // Instead of what the process holds, so that a budget means the same plan
  // in every run.
  std::optional<uint64_t> runtime_bytes;
  WrapExperts wrap_experts;
  KvFile::WriteFn write_kv;  // instead of pwrite for KV and session files
  // What the machine allows, instead of asking it. With runtime_bytes set and
  // without this, the budget stays as it is.
  std::function<LiveBudget::Sample()> sample_memory;
  std::function<double()> memory_clock;  // seconds, for sample_memory
};

}  // namespace mlx_flash
