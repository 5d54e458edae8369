// SPDX-License-Identifier: MIT
#pragma once

// The rate of a stream that comes in bursts: the slope of the line that fits
// best what has come by when. A throttle lets a slice's worth through at once;
// from the first byte of a burst to the last of another there is one burst more
// than there are pauses, and their quotient would be too large.
//
// Thread-compatible.

namespace mlx_flash {

class RateFit {
 public:
  // `total` has come by `time`, both growing.
  void add(double time, double total) {
    if (count_ == 0) first_ = time;
    const double t = time - first_;
    ++count_;
    const double dt = t - mean_t_;
    mean_t_ += dt / count_;
    mean_y_ += (total - mean_y_) / count_;
    tt_ += dt * (t - mean_t_);
    ty_ += dt * (total - mean_y_);
  }

  // 0 while nothing can be said.
  double per_second() const {
    return count_ >= kPointsMin && tt_ > 0 ? ty_ / tt_ : 0;
  }

 private:
  static constexpr double kPointsMin = 16;

  double first_ = 0;
  double count_ = 0;
  double mean_t_ = 0;
  double mean_y_ = 0;
  double tt_ = 0;  // sums of products of deviations
  double ty_ = 0;
};

}  // namespace mlx_flash
