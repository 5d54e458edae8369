// SPDX-License-Identifier: MIT
#pragma once

// What the back ends with threads share: one lock around the requests that
// wait, the hand-back to channels, and the counters. A back end adds who takes
// pending requests to the device.

#include "base/clock.h"
#include "base/thread_annotations.h"
#include "io/pending_reads.h"
#include "io/read_pacer.h"
#include "io/read_queue.h"

namespace mlx_flash {

class SharedReadQueue : public ReadQueue {
 public:
  void promote(ReadRequest& request, ReadClass read_class) override;
  void cancel(ReadRequest& request) override;
  size_t wait(ReadChannel& channel,
              std::span<ReadRequest*> done,
              bool block) override;
  void interrupt(ReadChannel& channel) override;
  void set_ahead_rate(double bytes_per_s) override;
  Stats stats() const override;
  double now() const override { return now_seconds(); }

 protected:
  explicit SharedReadQueue(const ReadQueueOptions& options)
      : pacer_(options.bytes_per_s) {}

  // Seconds until the most urgent pending request may start; 0 or less: now.
  // REQUIRES: something is pending.
  double pause() const REQUIRES(mutex_) {
    const double time = now();
    return pacer_.ready_at(*pending_.top(), time) - time;
  }
  // The most urgent pending request, now running.
  // REQUIRES: something is pending.
  ReadRequest& take_pending() REQUIRES(mutex_);
  // Something that waits may start sooner than it could before.
  virtual void wake() REQUIRES(mutex_) = 0;
  // Counts a request that ran and hands it back.
  void finish(ReadRequest& request) REQUIRES(mutex_);

  mutable Mutex mutex_;
  PendingReads pending_ GUARDED_BY(mutex_);
  BusyClock busy_ GUARDED_BY(mutex_);
  Stats stats_ GUARDED_BY(mutex_);
  bool stop_ GUARDED_BY(mutex_) = false;
  ReadPacer pacer_ GUARDED_BY(mutex_);

 private:
  void hand_back(ReadRequest& request) REQUIRES(mutex_);

  CondVar done_;  // something was handed back, or an interrupt
};

}  // namespace mlx_flash
