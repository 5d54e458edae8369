// SPDX-License-Identifier: MIT
#pragma once

// Holds a flow of bytes to a rate. Time is the caller's: seconds of any clock
// that does not go back.
//
// A request may start once all before it have been paid for (the generic cell
// rate algorithm, ITU-T I.371): the size of the one that starts does not
// matter, so requests larger than the burst get through.
//
// Thread-compatible. Never allocates.

#include <algorithm>
#include <cstdint>

namespace mlx_flash {

class TokenBucket {
 public:
  // `bytes_per_s` 0: no limit. After a pause, `burst_s` worth of bytes may go
  // at once.
  explicit TokenBucket(double bytes_per_s = 0, double burst_s = 0.01)
      : bytes_per_s_(bytes_per_s), burst_s_(burst_s) {}

  bool open() const { return bytes_per_s_ <= 0; }
  double bytes_per_s() const { return bytes_per_s_; }
  void set_rate(double bytes_per_s) { bytes_per_s_ = bytes_per_s; }

  // When the next request may start: `now` or later.
  double ready_at(double now) const {
    return open() ? now : std::max(now, paid_until_);
  }

  void take(double now, uint64_t bytes) {
    if (open()) return;
    paid_until_ = std::max(paid_until_, now - burst_s_) +
                  static_cast<double>(bytes) / bytes_per_s_;
  }

 private:
  double bytes_per_s_;
  double burst_s_;
  double paid_until_ = 0;
};

}  // namespace mlx_flash
