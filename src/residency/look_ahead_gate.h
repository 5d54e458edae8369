// SPDX-License-Identifier: MIT
#pragma once

// Whether reading ahead what a router will probably choose pays: found out by
// trying.
//
// Passes (tokens) are timed with and without it in turns. It stays on if the
// passes with it were shorter beyond doubt, and is tried again after 128; if
// not, the next trial comes after 64, 128, ... 4096 passes. What trials cost is
// counted, and one that has cost more than 0.5 % of all time so far ends at
// once. A pass that needed more bytes takes longer with and without: times are
// compared in proportion to what they needed.
//
// A state machine without a clock. Thread-compatible. Never allocates.

#include <cstdint>

namespace mlx_flash {

class LookAheadGate {
 public:
  // A pass is over: `seconds` since the one before, `bytes` of experts that
  // were not in memory of their own merit (misses, and what look-ahead brought
  // in time). Passes of several rows, and those after an interruption, are left
  // out.
  void end_pass(double seconds, uint64_t bytes);

  // For the pass that begins now.
  bool open() const { return open_; }

  struct Stats {
    uint64_t trials = 0;
    uint64_t open_passes = 0;
    double gain = 0;  // of the last trial: share of time saved, or lost
  };
  const Stats& stats() const { return stats_; }

 private:
  enum class Phase : uint8_t { kOff, kTrial, kOn };
  // Mean and squared deviations (Welford).
  struct Times {
    uint32_t count = 0;
    double mean = 0;
    double squares = 0;
    void add(double x);
    double error2() const;  // of the mean, squared
  };

  void start_trial();
  void end_trial(bool keep);
  bool decided(bool* keep) const;

  Phase phase_ = Phase::kOff;
  bool open_ = false;
  uint32_t wait_ = 32;     // passes until the next trial
  uint32_t pause_ = 32;    // what wait_ was set to
  uint32_t in_trial_ = 0;  // passes
  double mean_bytes_ = 0;  // of recent passes
  double total_s_ = 0;
  double cost_s_ = 0;  // of trials, as far as known
  Times with_;
  Times without_;
  Stats stats_;
};

}  // namespace mlx_flash
