// SPDX-License-Identifier: MIT

// The portable back end of ReadQueue: `depth` threads, each with one pread.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <vector>

#include "io/read_queue.h"
#include "io/shared_read_queue.h"

namespace mlx_flash {
namespace {

class ThreadReadQueue final : public SharedReadQueue {
 public:
  explicit ThreadReadQueue(const ReadQueueOptions& options)
      : SharedReadQueue(options) {
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

  const char* name() const override { return "threads"; }

 private:
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

  void wake() override REQUIRES(mutex_) { work_.notify_all(); }

  void worker_main() {
    mutex_.lock();
    for (;;) {
      await_work();
      if (stop_) break;
      ReadRequest& r = take_pending();
      // Whoever slept until its turn may have been woken for this one.
      if (!pacer_.open() && !pending_.empty()) work_.notify_one();
      mutex_.unlock();
      const uint64_t retries = read_all(r);
      mutex_.lock();
      stats_.retries += retries;
      finish(r);
    }
    mutex_.unlock();
  }

  // Until something is pending and the limit lets it start, or stop_.
  void await_work() REQUIRES(mutex_) {
    while (!stop_) {
      if (pending_.empty()) {
        work_.wait(mutex_);
        continue;
      }
      const double seconds = pause();
      if (seconds <= 0) return;
      work_.wait_for(mutex_, std::chrono::duration<double>(seconds));
    }
  }

  CondVar work_;  // something is pending, or stop_
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_thread_read_queue(
    const ReadQueueOptions& options) {
  return std::make_unique<ThreadReadQueue>(options);
}

}  // namespace mlx_flash
