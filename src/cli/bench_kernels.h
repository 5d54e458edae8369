// SPDX-License-Identifier: MIT
#pragma once

// `mlx-flash bench --kernels`: the kernels beside what the machine can do.

#include <string>

#include "mlx_flash/status.h"

namespace mlx_flash {

struct BenchKernelsOptions {
  int threads = 0;   // 0: one for each core it may use
  std::string only;  // formats whose name has this in it; empty: all
  bool json = false;
  bool quiet = false;
};

// Prints; the process's exit code. Needs no model.
Result<int> bench_kernels(const BenchKernelsOptions& options);

}  // namespace mlx_flash
