// SPDX-License-Identifier: MIT
#pragma once

// When the next read may start: the limit holds for all, the pace only for
// those that nobody waits for yet.
//
// Thread-compatible. Never allocates.

#include <algorithm>

#include "io/read_queue.h"
#include "io/token_bucket.h"

namespace mlx_flash {

class ReadPacer {
 public:
  explicit ReadPacer(double limit_bytes_per_s) : limit_(limit_bytes_per_s) {}

  void set_ahead_rate(double bytes_per_s) { ahead_.set_rate(bytes_per_s); }
  bool open() const { return limit_.open() && ahead_.open(); }

  double ready_at(const ReadRequest& next, double now) const {
    const double limit = limit_.ready_at(now);
    return paced(next) ? std::max(limit, ahead_.ready_at(now)) : limit;
  }

  void take(const ReadRequest& started, double now) {
    limit_.take(now, started.bytes);
    if (paced(started)) ahead_.take(now, started.bytes);
  }

 private:
  static bool paced(const ReadRequest& request) {
    return request.read_class >= ReadClass::kAhead;
  }

  TokenBucket limit_;
  TokenBucket ahead_{0, 0};  // no bursts: they are what it is against
};

}  // namespace mlx_flash
