// SPDX-License-Identifier: MIT
#pragma once

// Measures the kernels beside what the machine can do at most, in one run:
// `mlx-flash bench --kernels`. Allocates; on the calling thread and a pool.

#include <cstddef>
#include <functional>
#include <vector>

#include "base/thread_pool.h"
#include "base/weight_format.h"

namespace mlx_flash::kernels {

struct KernelSpeed {
  WeightFormat format;
  size_t rows = 0;  // of W
  size_t cols = 0;
  size_t tokens = 0;       // rows of x
  double bytes_per_s = 0;  // of weights; out of cache
  double flops = 0;        // operations in one second, two for a multiply-add
  double dram_share = 0;   // bytes_per_s over what reading memory gives
  double mix_share = 0;    // flops over a loop of the same instructions
};

struct KernelSpeeds {
  double dram_bytes_per_s = 0;
  double fma_flops = 0;
  // Time of affine 4-bit g64 for 512 rows of x over that of a variant whose
  // sums over groups are free to depend on the batch, less 1.
  double invariance_cost = 0;
  std::vector<KernelSpeed> kernels;
};

// Affine of all bits in groups of 64 with bfloat16 scales, and every other
// format once.
std::vector<WeightFormat> measured_formats();

struct MeasureOptions {
  std::vector<WeightFormat> formats = measured_formats();
  size_t rows = 14336;
  size_t cols = 4096;
  size_t weight_bytes = size_t{256} << 20;  // read in turn: beyond any cache
  double seconds = 0.1;                     // of each figure, at least
  std::vector<size_t> tokens = {1, 2, 4, 8, 16, 64, 512};
  // Called before each figure; false ends the measurement.
  std::function<bool(size_t done, size_t total)> progress;
};

// REQUIRES: supported().
KernelSpeeds measure_kernels(ThreadPool& pool, const MeasureOptions& options);

}  // namespace mlx_flash::kernels
