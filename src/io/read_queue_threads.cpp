// SPDX-License-Identifier: MIT

// The portable back end of ReadQueue: `depth` threads, each with one pread.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/thread_annotations.h"
#include "io/pending_reads.h"
#include "io/read_queue.h"

namespace mlx_flash {
namespace {

class ThreadReadQueue final : public ReadQueue {
 public:
  explicit ThreadReadQueue(const ReadQueueOptions& options) {
    const int depth = std::clamp(options.depth, 1, kReadDepthMax);
    threads_.reserve(static_cast<size_t>(depth));
    for (int i = 0; i < depth; ++i) {
      threads_.emplace_back([this] { worker_main(); });
    }
  }

  ~ThreadReadQueue() override {
    {
      MutexLock lock(mutex_);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void submit(ReadChannel& channel, ReadRequest& request) override {
    {
      MutexLock lock(mutex_);
      start_request(channel, request, now());
      pending_.push(request);
    }
    work_.notify_one();
  }

  void promote(ReadRequest& request, ReadClass read_class) override {
    MutexLock lock(mutex_);
    if (read_class >= request.read_class) return;
    if (!pending_.remove(request)) return;
    request.read_class = read_class;
    pending_.push(request);
  }

  void cancel(ReadRequest& request) override {
    MutexLock lock(mutex_);
    if (!pending_.remove(request)) return;
    request.status = cancelled("read cancelled");
    hand_back(request);
  }

  size_t wait(ReadChannel& channel,
              std::span<ReadRequest*> done,
              bool block) override {
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

  void interrupt(ReadChannel& channel) override {
    MutexLock lock(mutex_);
    channel.interrupted = true;
    done_.notify_all();
  }

  const char* name() const override { return "threads"; }

  Stats stats() const override {
    MutexLock lock(mutex_);
    Stats stats = stats_;
    stats.busy_seconds = busy_.seconds(now());
    return stats;
  }

  double now() const override { return now_seconds(); }

 private:
  void hand_back(ReadRequest& request) REQUIRES(mutex_) {
    const bool wake = request.channel->waiting > 0;
    deliver(request, now());
    if (wake) done_.notify_all();
  }

  // Reads all of the request; returns how often it had to try again.
  static uint64_t read_all(ReadRequest& r) {
    uint64_t retries = 0;
    for (;;) {
      const ssize_t n = ::pread(r.file->fd(),
                                r.buffer + r.done_bytes,
                                r.bytes - r.done_bytes,
                                static_cast<off_t>(r.offset + r.done_bytes));
      const int64_t result = n < 0 ? -int64_t{errno} : int64_t{n};
      if (advance_read(r, result, &retries) == ReadStep::kDone) break;
    }
    check_read(r);
    return retries;
  }

  void worker_main() {
    mutex_.lock();
    for (;;) {
      while (!stop_ && pending_.empty()) work_.wait(mutex_);
      if (stop_) break;
      ReadRequest* r = pending_.pop();
      r->state = static_cast<uint8_t>(ReadState::kRunning);
      busy_.begin(now());
      mutex_.unlock();
      const uint64_t retries = read_all(*r);
      mutex_.lock();
      busy_.end(now());
      ++stats_.reads;
      stats_.bytes += r->done_bytes;
      stats_.retries += retries;
      hand_back(*r);
    }
    mutex_.unlock();
  }

  mutable Mutex mutex_;
  CondVar work_;  // something is pending, or stop_
  CondVar done_;  // something was handed back, or an interrupt
  PendingReads pending_ GUARDED_BY(mutex_);
  BusyClock busy_ GUARDED_BY(mutex_);
  Stats stats_ GUARDED_BY(mutex_);
  bool stop_ GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_thread_read_queue(
    const ReadQueueOptions& options) {
  return std::make_unique<ThreadReadQueue>(options);
}

}  // namespace mlx_flash
