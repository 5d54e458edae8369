// SPDX-License-Identifier: MIT

// The portable back end of ReadQueue: `depth` threads, each with one pread.

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <vector>

#include "io/read_queue.h"
#include "io/shared_read_queue.h"

namespace mlx_flash {
namespace {

class ThreadReadQueue final : public SharedReadQueue {
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

  void worker_main() {
    mutex_.lock();
    for (;;) {
      while (!stop_ && pending_.empty()) work_.wait(mutex_);
      if (stop_) break;
      ReadRequest& r = take_pending();
      mutex_.unlock();
      const uint64_t retries = read_all(r);
      mutex_.lock();
      stats_.retries += retries;
      finish(r);
    }
    mutex_.unlock();
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
