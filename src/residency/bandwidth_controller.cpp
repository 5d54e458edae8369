// SPDX-License-Identifier: MIT
#include "residency/bandwidth_controller.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace mlx_flash {
namespace {

constexpr size_t kSegments = 32;
// Passes in a row that must agree before times are believed: a prompt, or a
// changed budget, is not what the next tokens will be like.
constexpr uint32_t kSimilarMin = 4;
constexpr double kSimilar = 0.3;
// Waiting for more than this share of a pass: reading is the bottleneck.
constexpr double kWaitShare = 0.01;
// Slower than the baseline by less is noise.
constexpr double kDisturbed = 1.01;
// A trial of pacing must shorten passes by this to be kept.
constexpr double kGain = 0.998;
constexpr uint32_t kTrialPasses = 4;  // the first of which does not count
constexpr uint32_t kRestMin = 8;
constexpr uint32_t kRestMax = 1024;
constexpr double kMarginMin = 1.1;
constexpr double kMarginMax = 4;
constexpr double kMarginStep = 1.5;
// Weight of a new pass in what is usual.
constexpr double kNew = 0.25;
// The baseline forgets so much per pass: contexts grow, clocks change.
constexpr double kBaselineDrift = 1.0005;

double blend(double old, double now) {
  return old == 0 ? now : old + kNew * (now - old);
}

double sum(const std::vector<double>& values) {
  double total = 0;
  for (const double value : values) total += value;
  return total;
}

}  // namespace

void BandwidthController::set_demand(std::span<const uint64_t> disk_bytes) {
  if (disk_bytes.size() != positions_) {
    positions_ = disk_bytes.size();
    compute_s_.assign(kSegments, 0);
    least_s_.assign(kSegments, 0);
    now_s_.assign(kSegments, 0);
    similar_ = 0;
    usual_s_ = 0;
  }
  sum_bytes_.assign(positions_ + 1, 0);
  for (size_t i = 0; i < positions_; ++i) {
    sum_bytes_[i + 1] = sum_bytes_[i] + static_cast<double>(disk_bytes[i]);
  }
  // What a pass takes with other bytes to read is not known.
  usual_s_ = 0;
  rest_ = 0;
  backoff_ = kRestMin;
  open();
}

size_t BandwidthController::segment_of(uint64_t position) const {
  return std::min<size_t>(
      position * kSegments / std::max<uint64_t>(positions_, 1), kSegments - 1);
}

void BandwidthController::on_acquire(uint64_t position,
                                     uint64_t ahead_bytes,
                                     double now,
                                     double waited_s) {
  if (begun_) {
    const double compute = std::max(0.0, now - waited_s - last_);
    now_s_[segment_] += compute;
    pass_.compute_s += compute;
    pass_.waited_s += waited_s;
  }
  begun_ = true;
  last_ = now;
  const size_t segment = segment_of(position);
  const bool entered = segment != segment_;
  segment_ = segment;
  if (!paced_) return;
  paced_in_pass_ = true;
  // A wait may be the disk's doing or ours: reading goes first from here on,
  // and with more room in the next pass.
  if (pass_.waited_s > kWaitShare * usual_s_) {
    margin_ *= kMarginStep;
    if (margin_ > kMarginMax) {
      give_up_pacing();
    } else {
      rate_ = 0;  // for the rest of the pass
    }
  } else if (entered && rate_ > 0) {
    rate_ = demanded_rate(position, ahead_bytes);
  }
}

double BandwidthController::bytes_until(uint64_t position) const {
  const uint64_t pass = position / positions_;
  return static_cast<double>(pass) * sum_bytes_.back() +
         sum_bytes_[position % positions_];
}

double BandwidthController::demanded_rate(uint64_t position,
                                          uint64_t ahead_bytes) const {
  const double have = bytes_until(position) + static_cast<double>(ahead_bytes);
  const size_t segment = segment_of(position);
  double seconds = 0;
  double rate = 0;
  // Ends of the segments from here until one pass on.
  for (size_t k = 0; k < kSegments; ++k) {
    const size_t at = segment + k;
    seconds += compute_s_[at % kSegments];
    const uint64_t end =
        (at / kSegments) * positions_ +
        ((at % kSegments + 1) * positions_ + kSegments - 1) / kSegments;
    const double due = bytes_until(end) - have;
    if (due > 0 && seconds > 0) rate = std::max(rate, due / seconds);
  }
  // Nothing due: still some, for what cannot be foreseen.
  const double usual = sum_bytes_.back() / std::max(sum(compute_s_), 1e-9);
  return margin_ * std::max(rate, usual / 2);
}

void BandwidthController::end_pass(double now) {
  if (!begun_) return;
  const double rest = std::max(0.0, now - last_);
  now_s_[segment_] += rest;
  pass_.compute_s += rest;
  const Pass pass = std::exchange(pass_, Pass());
  ++stats_.passes;
  if (paced_in_pass_) ++stats_.paced_passes;
  learn_times(pass);
  if (similar_ >= kSimilarMin && sum_bytes_.back() > 0) {
    decide(pass);
  } else if (paced_) {
    open();
  }
  std::fill(now_s_.begin(), now_s_.end(), 0);
  begun_ = false;
  paced_in_pass_ = false;
  segment_ = 0;
  stats_.compute_s = pass.compute_s;
}

void BandwidthController::learn_times(const Pass& pass) {
  const bool alike =
      std::abs(pass.compute_s - last_compute_s_) <= kSimilar * last_compute_s_;
  last_compute_s_ = pass.compute_s;
  if (!alike) {
    similar_ = 0;
    usual_s_ = 0;
    for (size_t s = 0; s < kSegments; ++s) {
      compute_s_[s] = least_s_[s] = now_s_[s];
    }
    return;
  }
  ++similar_;
  for (size_t s = 0; s < kSegments; ++s) {
    compute_s_[s] = blend(compute_s_[s], now_s_[s]);
    least_s_[s] = std::min(least_s_[s] * kBaselineDrift, now_s_[s]);
  }
  if (!paced_in_pass_) usual_s_ = blend(usual_s_, pass.total());
}

void BandwidthController::decide(const Pass& pass) {
  if (paced_) {
    judge_trial(pass);
    return;
  }
  if (rest_ > 0) {
    --rest_;
    return;
  }
  const bool reading_bound = pass.waited_s > kWaitShare * pass.total();
  const bool disturbed = sum(compute_s_) > kDisturbed * sum(least_s_);
  if (reading_bound || !disturbed || usual_s_ == 0) return;
  paced_ = true;
  margin_ = kMarginMin;
  trial_passes_ = 0;
  trial_s_ = 0;
  ++stats_.trials;
  rate_ = demanded_rate(0, 0);
}

void BandwidthController::judge_trial(const Pass& pass) {
  if (rate_ == 0) rate_ = demanded_rate(0, 0);  // opened by a wait
  ++trial_passes_;
  if (trial_passes_ > 1) trial_s_ = blend(trial_s_, pass.total());
  if (trial_passes_ < kTrialPasses) return;
  if (trial_s_ > kGain * usual_s_) {
    give_up_pacing();
  } else {
    backoff_ = kRestMin;
  }
}

void BandwidthController::open() {
  paced_ = false;
}

void BandwidthController::give_up_pacing() {
  open();
  rest_ = backoff_;
  backoff_ = std::min(backoff_ * 2, kRestMax);
  // What is usual without pacing is measured anew meanwhile.
}

BandwidthController::Stats BandwidthController::stats() const {
  Stats stats = stats_;
  stats.paced = paced_;
  stats.bytes_per_s = ahead_rate();
  stats.baseline_s = sum(least_s_);
  return stats;
}

}  // namespace mlx_flash
