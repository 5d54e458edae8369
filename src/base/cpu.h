// SPDX-License-Identifier: MIT
#pragma once

// How many processors this process may keep busy. Thread-safe.

#include <optional>

#include "base/memory.h"

namespace mlx_flash {

// Those the machine has, less what affinity and control groups take away: a
// process that keeps more busy than its quota is stopped for the rest of each
// period. At least 1.
int usable_cpus();

// The tightest quota of the groups (cpu.max; v1: cpu.cfs_quota_us over
// cpu.cfs_period_us) in processors. Nothing: no quota.
std::optional<double> read_cgroup_cpus(
    const std::vector<CgroupFolders>& hierarchies, const ReadText& read);

}  // namespace mlx_flash
