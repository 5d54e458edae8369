// SPDX-License-Identifier: MIT
#pragma once

// How fast a file can be read: the B of tokens/s = B / (M - R). Reads a file
// that is there, front to back and over again, with so many requests under way,
// for a set time; writes nothing. What is measured is the disk as this process
// may use it now: its control group's throttle and other readers included.
//
// Thread-compatible.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "io/read_queue.h"

namespace mlx_flash {

// One way of reading.
struct DiskLoad {
  uint32_t request_bytes = uint32_t{1} << 20;
  int depth = 8;       // requests under way
  bool direct = true;  // false: through the page cache, pages dropped after
};

struct DiskSpeed {
  DiskLoad load;
  double bytes_per_s = 0;
  // From submission to completion, of single requests.
  double latency_p50_s = 0;
  double latency_p99_s = 0;
  uint64_t reads = 0;
};

struct DiskProbeOptions {
  IoKind io = IoKind::kAuto;
  std::vector<DiskLoad> loads = disk_loads();
  double seconds_each = 0.25;
  // Called after each load with how many are done; false: stop, and return
  // what there is.
  std::function<bool(size_t done, size_t total)> progress;

  // 64 KiB to 4 MiB, one to 16 under way, and one load that is buffered.
  static std::vector<DiskLoad> disk_loads();
};

struct DiskProbe {
  std::vector<DiskSpeed> speeds;
  std::string io;       // the back end that read
  bool direct = false;  // whether the file system allows it at all
  uint64_t file_bytes = 0;

  // Of the fastest direct load; 0 without any.
  double bytes_per_s() const;
};

// Fails for an empty file and where reading fails.
Result<DiskProbe> probe_disk(const std::string& path,
                             const DiskProbeOptions& options);

// What two of a few readings agree on. A disk that others use, or a machine
// that was held up, makes a single one wrong by any factor. Reads at least
// twice; the median of five where no two are within 4 %. Ends with the first
// reading that fails.
Result<double> agreed_rate(const std::function<Result<double>()>& reading);

}  // namespace mlx_flash
