// SPDX-License-Identifier: MIT
#pragma once

// How many reads to keep under way: as few as give the device's full speed.
// More than that gain nothing, and a read that somebody waits for stands behind
// all of them.
//
// Steps up or down by a factor of two are tried now and then, measured over a
// window in which the depth was the limit, and kept if going up gained 5 % or
// going down lost less than 2 %. After failures trials become rare; a device
// that has become faster or slower brings them back.
//
// A state machine without clock or lock. Thread-compatible; never allocates.

#include <algorithm>
#include <cstdint>

namespace mlx_flash {

class DepthTuner {
 public:
  // Starts at `depth` and stays between 1 and `depth_max`; where that is not
  // larger, the depth is fixed.
  DepthTuner(int depth, int depth_max)
      : depth_(depth), depth_max_(depth_max), fixed_(depth_max <= depth) {}

  int depth() const { return depth_; }
  uint64_t trials() const { return trials_; }

  // A read of so many bytes has finished. `limited`: another one waits for its
  // place. Times in seconds.
  void on_finish(uint64_t bytes, bool limited, double now);

 private:
  static constexpr double kWindowMin = 0.02;  // seconds
  static constexpr double kGainUp = 1.05;
  static constexpr double kLossDown = 0.98;
  static constexpr double kOtherDevice = 1.3;  // another speed than usual
  static constexpr double kNew = 0.25;         // weight of a new window
  static constexpr uint32_t kRestMin = 8;      // windows between trials
  static constexpr uint32_t kRestMax = 1024;

  void close_window(double rate);
  void begin_trial();
  void judge(double rate);
  void rest(uint32_t windows);

  int depth_;
  int depth_max_;
  bool fixed_;

  // The window under way.
  bool open_ = false;
  double begin_ = 0;
  uint64_t bytes_ = 0;
  int reads_ = 0;

  int settled_ = 0;     // the depth to go back to; 0: no trial is on
  bool fresh_ = false;  // the first window of a trial does not count
  bool up_ = false;     // the direction of the next trial
  uint32_t rest_ = kRestMin;
  uint32_t backoff_ = kRestMin;
  double usual_ = 0;  // bytes per second at the settled depth
  double best_ = 0;   // of this device at any depth
  uint64_t trials_ = 0;
};

inline void DepthTuner::on_finish(uint64_t bytes, bool limited, double now) {
  if (fixed_) return;
  if (!limited) {
    open_ = false;
    return;
  }
  if (!open_) {
    open_ = true;
    begin_ = now;
    bytes_ = 0;
    reads_ = 0;
    return;
  }
  bytes_ += bytes;
  ++reads_;
  if (reads_ < 4 * depth_ + 16 || now - begin_ < kWindowMin) return;
  open_ = false;
  close_window(static_cast<double>(bytes_) / (now - begin_));
}

inline void DepthTuner::close_window(double rate) {
  if (settled_ != 0) {
    if (!fresh_) judge(rate);
    fresh_ = false;
    return;
  }
  if (usual_ > 0 &&
      (rate > kOtherDevice * usual_ || kOtherDevice * rate < usual_)) {
    usual_ = best_ = 0;
    rest(kRestMin);
  }
  usual_ = usual_ == 0 ? rate : usual_ + kNew * (rate - usual_);
  best_ = std::max(best_, usual_);
  if (--rest_ == 0) begin_trial();
}

inline void DepthTuner::begin_trial() {
  if (depth_ == 1) up_ = true;
  if (depth_ == depth_max_) up_ = false;
  settled_ = depth_;
  depth_ = up_ ? std::min(depth_ * 2, depth_max_) : depth_ / 2;
  fresh_ = true;
  ++trials_;
}

inline void DepthTuner::judge(double rate) {
  if (up_ ? rate > kGainUp * usual_ : rate > kLossDown * best_) {
    usual_ = rate;
    best_ = std::max(best_, rate);
    rest(kRestMin);
  } else {
    depth_ = settled_;
    up_ = !up_;
    rest(std::min(backoff_ * 2, kRestMax));
  }
  settled_ = 0;
}

inline void DepthTuner::rest(uint32_t windows) {
  rest_ = backoff_ = windows;
}

}  // namespace mlx_flash
