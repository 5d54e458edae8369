// SPDX-License-Identifier: MIT
#pragma once

// `mlx-flash bench --disk`: how fast the disk under a model can be read; and
// the one figure of it that `plan` needs.

#include <string>

#include "io/read_queue.h"
#include "mlx_flash/config.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

struct BenchDiskOptions {
  std::string model;  // a folder or file that is there
  IoBackend io = IoBackend::kAuto;
  bool json = false;
  bool quiet = false;
};

// Prints; the process's exit code. Reads the model's largest file.
Result<int> bench_disk(const BenchDiskOptions& options);

// Bytes per second that reading the model's weights reaches now; 0.7 s of
// reading. Not kept for the next time: a throttle or another reader changes
// it.
Result<double> disk_speed(const std::string& model, IoBackend io);

}  // namespace mlx_flash
