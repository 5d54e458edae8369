// SPDX-License-Identifier: MIT
#pragma once

// Decides when reading ahead helps and when it hurts. Reading and computing
// share the memory bus: where reading is the bottleneck every moment of it
// counts, where computing is, a burst of reads slows the compute for nothing.
//
// Open: reads start as soon as memory comes free. Paced: reads ahead go no
// faster than the demand of what comes next needs, spread over the compute time
// predicted until then (ReadQueue::set_ahead_rate()). The controller starts
// open, stays open while the consumer waits for the disk, and paces only if
// computing is slower than its pristine baseline; it keeps pacing only if
// passes became shorter by it, and otherwise tries again ever more rarely. A
// tile that the consumer waits for is never held back.
//
// The pass is cut into segments of about equal demand of compute; for each it
// knows the bytes to be read (from the prediction) and the compute time (from
// the passes before). The pace is the least that meets every deadline of the
// next pass: max over h of (bytes due by h, not yet asked for) / (compute time
// until h), with a margin.
//
// A state machine without threads, clock or I/O: bandwidth_controller_test.cpp
// runs it in closed loop on a simulated device. Allocates in set_demand() only.
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mlx_flash {

class BandwidthController {
 public:
  struct Stats {
    uint64_t passes = 0;
    uint64_t paced_passes = 0;  // at least in part
    uint64_t trials = 0;        // times pacing was tried
    bool paced = false;         // now
    double bytes_per_s = 0;     // the pace; 0: open
    double baseline_s = 0;      // compute of a pass, undisturbed
    double compute_s = 0;       // of the last pass
  };

  // `disk_bytes[i]`: what position i of the prediction reads in each pass; 0
  // if it stays in memory. Times learnt before are kept if the number of
  // positions is.
  void set_demand(std::span<const uint64_t> disk_bytes);

  // The consumer got the tile before `position` after waiting; of the tiles
  // from there on, `ahead_bytes` have been read already (only looked at while
  // paced()).
  void on_acquire(uint64_t position,
                  uint64_t ahead_bytes,
                  double now,
                  double waited_s);
  void end_pass(double now);

  bool paced() const { return paced_; }
  // For ReadQueue::set_ahead_rate(); 0: open.
  double ahead_rate() const { return paced_ ? rate_ : 0; }

  Stats stats() const;

 private:
  // What one pass was like.
  struct Pass {
    double compute_s = 0;
    double waited_s = 0;
    double total() const { return compute_s + waited_s; }
  };

  size_t segment_of(uint64_t position) const;
  void close_segment(double compute_s);
  void learn_times(const Pass& pass);
  void decide(const Pass& pass);
  void judge_trial(const Pass& pass);
  void open();
  void give_up_pacing();
  double demanded_rate(uint64_t position, uint64_t ahead_bytes) const;
  double bytes_until(uint64_t position) const;

  std::vector<double> sum_bytes_;  // before position i; one more than positions
  std::vector<double> compute_s_;  // by segment: expected
  std::vector<double> least_s_;    // by segment: the least seen
  std::vector<double> now_s_;      // by segment: this pass
  uint64_t positions_ = 0;

  Pass pass_;             // so far
  double last_ = 0;       // of the last event
  bool begun_ = false;    // this pass has had an event
  size_t segment_ = 0;    // of the last event
  uint32_t similar_ = 0;  // passes in a row with about the same compute
  double usual_s_ = 0;    // of a pass while open
  double last_compute_s_ = 0;

  bool paced_ = false;
  bool paced_in_pass_ = false;
  double margin_ = 0;
  uint32_t trial_passes_ = 0;
  double trial_s_ = 0;
  uint32_t rest_ = 0;     // passes until the next trial
  uint32_t backoff_ = 0;  // the rest after the next failure
  double rate_ = 0;       // while paced
  Stats stats_;
};

}  // namespace mlx_flash
