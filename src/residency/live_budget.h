// SPDX-License-Identifier: MIT
#pragma once

// The budget while a model runs: what the user asked for, less what the machine
// has taken back since. It follows the limits of the control groups down at
// once and up after a while, and yields under memory pressure.
//
// A state machine without clock or system calls; core.cpp feeds it with samples
// (base/memory.h) a few times a second and moves the budget to what it says.
//
// Thread-compatible.

#include <cstdint>
#include <optional>

namespace mlx_flash {

class LiveBudget {
 public:
  struct Sample {
    // What the process may hold, all it holds included: the tightest limit of
    // its groups, and what is free in them and in the machine.
    std::optional<uint64_t> limit_bytes;
    uint64_t allowed_bytes = UINT64_MAX;
    // Seconds since some beginning that somebody waited for memory (Linux's
    // pressure stall information, "some total").
    double stalled_s = 0;
  };

  // `asked` is a ceiling that nothing exceeds; `automatic` budgets leave a
  // margin below what is allowed and follow it up and down.
  LiveBudget(uint64_t asked, bool automatic)
      : asked_(asked), automatic_(automatic), budget_(asked) {}

  // The user asks for another.
  void ask(uint64_t bytes, bool automatic);

  // The budget from `now` (seconds) on.
  uint64_t update(double now, const Sample& sample);
  uint64_t budget() const { return budget_; }

 private:
  void feel_pressure(double now, double stalled_s);
  uint64_t target(const Sample& sample) const;

  uint64_t asked_;
  bool automatic_;
  uint64_t budget_;
  double share_ = 1;         // of the target: less under pressure
  double window_start_ = 0;  // pressure is measured from here
  double window_stalled_s_ = 0;
  bool window_open_ = false;
  double share_changed_ = 0;
  double above_since_ = 0;  // the target has been higher than the budget
  bool above_ = false;
};

}  // namespace mlx_flash
