// SPDX-License-Identifier: MIT
#include "base/thread_pool.h"

#include <algorithm>

#include "base/check.h"

namespace mlx_flash {
namespace {

// About 20-50 us of waiting before a worker gives its core back: longer than
// the gaps between the kernels of one layer, shorter than a read.
constexpr int kSpins = 2000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  FLASH_CHECK(threads >= 1);
  workers_.reserve(static_cast<size_t>(threads) - 1);
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i] { worker_main(i); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(size_t n, size_t grain, Call call, const void* fn) {
  grain = std::max<size_t>(grain, 1);
  if (n == 0) return;
  if (workers_.empty() || n <= grain) {
    call(fn, 0, n, 0);
    return;
  }
  call_ = call;
  fn_ = fn;
  n_ = n;
  grain_ = grain;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  work(0);
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

void ThreadPool::work(int thread) {
  // Half of an even share of what is left: few ranges, and those at the end are
  // small, so that threads of unequal speed end together.
  const size_t shares = 2 * static_cast<size_t>(threads()) * grain_;
  size_t begin = next_.load(std::memory_order_relaxed);
  while (begin < n_) {
    const size_t grains = std::max<size_t>(1, (n_ - begin) / shares);
    const size_t end = std::min(n_, begin + grains * grain_);
    if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) {
      continue;
    }
    call_(fn_, begin, end, thread);
    begin = next_.load(std::memory_order_relaxed);
  }
}

void ThreadPool::worker_main(int thread) {
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) {
        relax();
        continue;
      }
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    work(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace mlx_flash
