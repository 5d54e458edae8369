// SPDX-License-Identifier: MIT
#include "residency/live_budget.h"

#include <algorithm>

#include "base/memory.h"

namespace mlx_flash {
namespace {

// What is free changes all the time; less than this is not worth moving for.
constexpr double kNoise = 0.03;
// The kernel rounds limits to pages, of 64 KiB at most.
constexpr uint64_t kLimitRounding = 64 << 10;
constexpr double kRaiseAfterS = 2;
constexpr double kWindowS = 1;
// Some task waited for memory for so much of the time.
constexpr double kPressed = 0.10;
constexpr double kRelaxed = 0.01;
constexpr double kYield = 0.9;
constexpr double kShareMin = 0.3;
constexpr double kRecoverAfterS = 10;

uint64_t scaled(uint64_t bytes, double factor) {
  return static_cast<uint64_t>(static_cast<double>(bytes) * factor);
}

}  // namespace

void LiveBudget::ask(uint64_t bytes, bool automatic) {
  asked_ = bytes;
  automatic_ = automatic;
  budget_ = bytes;
  share_ = 1;
  above_ = false;
}

void LiveBudget::feel_pressure(double now, double stalled_s) {
  if (!window_open_) {
    window_open_ = true;
    window_start_ = now;
    window_stalled_s_ = stalled_s;
    share_changed_ = now;
    return;
  }
  const double seconds = now - window_start_;
  if (seconds < kWindowS) return;
  const double stalled = (stalled_s - window_stalled_s_) / seconds;
  window_start_ = now;
  window_stalled_s_ = stalled_s;
  if (stalled > kPressed) {
    share_ = std::max(kShareMin, share_ * kYield);
    share_changed_ = now;
  } else if (stalled > kRelaxed) {
    share_changed_ = now;
  } else if (share_ < 1 && now - share_changed_ >= kRecoverAfterS) {
    share_ = std::min(1.0, share_ / kYield);
    share_changed_ = now;
  }
}

uint64_t LiveBudget::target(const Sample& sample) const {
  uint64_t limit = sample.limit_bytes.value_or(UINT64_MAX);
  if (limit < asked_ && asked_ - limit < kLimitRounding) limit = asked_;
  const uint64_t allowed = std::min(sample.allowed_bytes, limit);
  uint64_t bytes = 0;
  if (automatic_) {
    bytes = allowed - ram_margin(allowed);
  } else {
    bytes = std::min(asked_, limit);
    // A little less free than expected may be our own doing: page tables,
    // files of others that we have open.
    if (allowed < scaled(bytes, 1 - kNoise)) bytes = allowed;
  }
  return scaled(bytes, share_);
}

uint64_t LiveBudget::update(double now, const Sample& sample) {
  feel_pressure(now, sample.stalled_s);
  const uint64_t wanted = target(sample);
  const bool over_limit =
      sample.limit_bytes && budget_ >= *sample.limit_bytes + kLimitRounding;
  if (over_limit || wanted < scaled(budget_, 1 - kNoise)) {
    budget_ = std::min(wanted, budget_);
    above_ = false;
  } else if (wanted > scaled(budget_, 1 + kNoise) ||
             (!automatic_ && wanted > budget_ && wanted == asked_)) {
    if (!above_) {
      above_ = true;
      above_since_ = now;
    } else if (now - above_since_ >= kRaiseAfterS) {
      budget_ = wanted;
      above_ = false;
    }
  } else {
    above_ = false;
  }
  return budget_;
}

}  // namespace mlx_flash
