// SPDX-License-Identifier: MIT
#include "residency/look_ahead_gate.h"

#include <algorithm>
#include <cmath>

namespace mlx_flash {
namespace {

constexpr uint32_t kPairsMin = 8;   // before anything is decided
constexpr uint32_t kPairsMax = 48;  // of a trial
constexpr double kGainMin = 0.005;
constexpr double kDoubt = 2;  // standard errors
constexpr double kCostMax = 0.005;
constexpr uint32_t kPauseMax = 4096;
constexpr uint32_t kKeepPasses = 128;
constexpr double kRecent = 1.0 / 32;

}  // namespace

void LookAheadGate::Times::add(double x) {
  ++count;
  const double before = x - mean;
  mean += before / count;
  squares += before * (x - mean);
}

double LookAheadGate::Times::error2() const {
  if (count < 2) return 0;
  return squares / (count - 1) / count;
}

void LookAheadGate::end_pass(double seconds, uint64_t bytes) {
  const auto needed = static_cast<double>(bytes);
  mean_bytes_ += kRecent * (needed - mean_bytes_);
  total_s_ += seconds;
  if (open_) ++stats_.open_passes;
  if (phase_ != Phase::kTrial) {
    if (wait_ > 0) --wait_;
    if (wait_ == 0) start_trial();
    return;
  }
  // Where the disk is the bottleneck time goes with the bytes, where computing
  // is it does not: half of the difference is taken out.
  const double usual = std::max(mean_bytes_, 1.0);
  const double time = seconds * 2 * usual / (usual + needed);
  (open_ ? with_ : without_).add(time);
  ++in_trial_;
  bool keep = false;
  if (decided(&keep)) {
    end_trial(keep);
    return;
  }
  // On, off, off, on: what changes steadily hits both alike.
  const uint32_t step = in_trial_ % 4;
  open_ = step == 0 || step == 3;
}

void LookAheadGate::start_trial() {
  phase_ = Phase::kTrial;
  ++stats_.trials;
  in_trial_ = 0;
  with_ = {};
  without_ = {};
  open_ = true;
}

bool LookAheadGate::decided(bool* keep) const {
  *keep = false;
  const double saved = without_.mean - with_.mean;  // of each pass
  if (with_.count > 0 && without_.count > 0 &&
      cost_s_ - saved * with_.count > kCostMax * total_s_) {
    return true;
  }
  const uint32_t pairs = std::min(with_.count, without_.count);
  if (pairs < kPairsMin) return false;
  const double doubt = kDoubt * std::sqrt(with_.error2() + without_.error2());
  const bool gain = saved > kGainMin * without_.mean;
  *keep = gain && saved > doubt;
  return *keep || saved < -doubt || pairs >= kPairsMax;
}

void LookAheadGate::end_trial(bool keep) {
  const double saved = without_.mean - with_.mean;
  stats_.gain = without_.mean > 0 ? saved / without_.mean : 0;
  cost_s_ = std::max(0.0, cost_s_ - saved * with_.count);
  open_ = keep;
  phase_ = keep ? Phase::kOn : Phase::kOff;
  pause_ = keep ? 32 : std::min(kPauseMax, pause_ * 2);
  wait_ = keep ? kKeepPasses : pause_;
}

}  // namespace mlx_flash
