// SPDX-License-Identifier: MIT
#pragma once

// What all back ends of ReadQueue share: requests that wait for their turn, the
// delivery to channels, and what follows from the outcome of one read call.
// Lists go through ReadRequest::next, so nothing is allocated.
//
// Thread-compatible: a back end holds its lock around these.

#include <array>
#include <cstdint>
#include <span>

#include "io/read_queue.h"

namespace mlx_flash {

enum class ReadState : uint8_t { kIdle, kPending, kRunning, kDone };

inline constexpr uint8_t kReadInterruptionsMax = 64;
inline constexpr uint8_t kReadFailuresMax = 3;

inline ReadState read_state(const ReadRequest& request) {
  return static_cast<ReadState>(request.state);
}

// Puts the queue's own fields of a request in order for a new journey.
// REQUIRES: the request is not under way.
void start_request(ReadChannel& channel, ReadRequest& request, double now);

// Requests that have not started, first in first out within a class.
class PendingReads {
 public:
  bool empty() const { return count_ == 0; }
  size_t size() const { return count_; }
  void push(ReadRequest& request);
  ReadRequest* pop();              // the most urgent; null if empty
  const ReadRequest* top() const;  // what pop() would give
  bool remove(ReadRequest& request);

 private:
  struct List {
    ReadRequest* head = nullptr;
    ReadRequest* tail = nullptr;
  };
  std::array<List, kReadClasses> lists_;
  size_t count_ = 0;
};

// Appends a finished request to its channel.
void deliver(ReadRequest& request, double now);
// Moves finished requests out of the channel; returns how many.
size_t take_delivered(ReadChannel& channel, std::span<ReadRequest*> done);

enum class ReadStep { kDone, kAgain };

// Applies the outcome of one read call for what was missing of the request
// (from done_bytes on): a number of bytes, 0 at the end of the file, or -errno.
// kDone: the request is finished, `status` set. kAgain: read on from
// done_bytes, which is a multiple of the alignment.
ReadStep advance_read(ReadRequest& request, int64_t result, uint64_t* retries);

// What follows a read that succeeded: page cache and unchanged file.
void check_read(ReadRequest& request);

// Seconds with at least one read under way.
class BusyClock {
 public:
  void begin(double now) {
    if (running_++ == 0) since_ = now;
  }
  void end(double now) {
    if (--running_ == 0) seconds_ += now - since_;
  }
  int running() const { return running_; }
  double seconds(double now) const {
    return seconds_ + (running_ > 0 ? now - since_ : 0);
  }

 private:
  int running_ = 0;
  double since_ = 0;
  double seconds_ = 0;
};

}  // namespace mlx_flash
