// SPDX-License-Identifier: MIT
#include "io/read_queue.h"

#include <atomic>

#include "base/log.h"

namespace mlx_flash {

std::unique_ptr<ReadQueue> make_read_queue(IoKind kind,
                                           const ReadQueueOptions& options) {
  // For large direct reads both reach the disk's speed; buffered, threads are
  // faster, as io_uring hands such reads to its own workers (bench/RESULTS.md).
  if (kind == IoKind::kUring) {
    if (auto queue = make_uring_read_queue(options)) return queue;
    static std::atomic_flag said = ATOMIC_FLAG_INIT;
    if (!said.test_and_set()) {
      log_warning("io_uring cannot be used here: reading with threads");
    }
  }
  return make_thread_read_queue(options);
}

}  // namespace mlx_flash
