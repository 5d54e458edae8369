// SPDX-License-Identifier: MIT
#include "io/shared_read_queue.h"

namespace mlx_flash {

void SharedReadQueue::promote(ReadRequest& request, ReadClass read_class) {
  MutexLock lock(mutex_);
  if (read_class >= request.read_class) return;
  if (!pending_.remove(request)) return;
  request.read_class = read_class;
  pending_.push(request);
  if (!pacer_.open()) wake();
}

void SharedReadQueue::cancel(ReadRequest& request) {
  MutexLock lock(mutex_);
  if (!pending_.remove(request)) return;
  request.status = cancelled("read cancelled");
  hand_back(request);
}

size_t SharedReadQueue::wait(ReadChannel& channel,
                             std::span<ReadRequest*> done,
                             bool block) {
  MutexLock lock(mutex_);
  if (block) {
    ++channel.waiting;
    while (channel.done_head == nullptr && channel.under_way > 0 &&
           !channel.interrupted) {
      done_.wait(mutex_);
    }
    --channel.waiting;
    channel.interrupted = false;
  }
  return take_delivered(channel, done);
}

void SharedReadQueue::interrupt(ReadChannel& channel) {
  MutexLock lock(mutex_);
  channel.interrupted = true;
  done_.notify_all();
}

void SharedReadQueue::set_ahead_rate(double bytes_per_s) {
  MutexLock lock(mutex_);
  pacer_.set_ahead_rate(bytes_per_s);
  wake();
}

ReadQueue::Stats SharedReadQueue::stats() const {
  MutexLock lock(mutex_);
  Stats stats = stats_;
  stats.busy_seconds = busy_.seconds(now());
  return stats;
}

ReadRequest& SharedReadQueue::take_pending() {
  ReadRequest& request = *pending_.pop();
  request.state = static_cast<uint8_t>(ReadState::kRunning);
  busy_.begin(now());
  pacer_.take(request, now());
  return request;
}

void SharedReadQueue::finish(ReadRequest& request) {
  busy_.end(now());
  ++stats_.reads;
  stats_.bytes += request.done_bytes;
  hand_back(request);
}

void SharedReadQueue::hand_back(ReadRequest& request) {
  const bool wake = request.channel->waiting > 0;
  deliver(request, now());
  if (wake) done_.notify_all();
}

}  // namespace mlx_flash
