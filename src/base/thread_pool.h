// SPDX-License-Identifier: MIT
#pragma once

// A fixed set of worker threads for the compute kernels.
//
// `parallel_for` splits [0, n) over the workers and the calling thread and
// returns when all of it is done. Work is divided by index only, so results
// must not depend on which thread runs what. Workers spin briefly between
// calls (a decode step makes hundreds of them) and then sleep.
//
// Thread-compatible: one thread calls parallel_for at a time.

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mlx_flash {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 means no workers. REQUIRES: threads >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end, thread) for disjoint ranges that cover [0, n); a range
  // begins at a multiple of `grain` and, but for the last, is at least one
  // long. `thread` is in [0, threads()): an index for scratch memory. No
  // allocation. REQUIRES: fn does not throw.
  template <typename Fn>
  void parallel_for(size_t n, size_t grain, const Fn& fn) {
    run(
        n,
        grain,
        [](const void* f, size_t begin, size_t end, int thread) {
          (*static_cast<const Fn*>(f))(begin, end, thread);
        },
        &fn);
  }

 private:
  using Call = void (*)(const void* fn, size_t begin, size_t end, int thread);

  void run(size_t n, size_t grain, Call call, const void* fn);
  void work(int thread);  // takes ranges until none is left
  void worker_main(int thread);

  std::vector<std::thread> workers_;

  // The present job: written by run() before `generation_` is raised.
  Call call_ = nullptr;
  const void* fn_ = nullptr;
  size_t n_ = 0;
  size_t grain_ = 1;
  std::atomic<size_t> next_{0};  // first index nobody has taken
  std::atomic<int> busy_{0};     // workers that have not finished the job
  std::atomic<uint32_t> generation_{0};
  std::atomic<bool> stop_{false};

  std::mutex mutex_;  // only to sleep and wake
  std::condition_variable wake_;
};

}  // namespace mlx_flash
