// SPDX-License-Identifier: MIT
#pragma once

// Clang's thread-safety annotations, and a mutex that carries them; nothing
// under other compilers.

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define FLASH_ATTRIBUTE(x) __attribute__((x))
#else
#define FLASH_ATTRIBUTE(x)
#endif

#define CAPABILITY(x) FLASH_ATTRIBUTE(capability(x))
#define SCOPED_CAPABILITY FLASH_ATTRIBUTE(scoped_lockable)
#define GUARDED_BY(x) FLASH_ATTRIBUTE(guarded_by(x))
#define REQUIRES(...) FLASH_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define ACQUIRE(...) FLASH_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define RELEASE(...) FLASH_ATTRIBUTE(release_capability(__VA_ARGS__))
#define EXCLUDES(...) FLASH_ATTRIBUTE(locks_excluded(__VA_ARGS__))
#define NO_THREAD_SAFETY_ANALYSIS FLASH_ATTRIBUTE(no_thread_safety_analysis)

namespace mlx_flash {

class CAPABILITY("mutex") Mutex {
 public:
  void lock() ACQUIRE() { mutex_.lock(); }
  void unlock() RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ACQUIRE(mutex) : mutex_(mutex) {
    mutex_.lock();
  }
  ~MutexLock() RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Waits on an annotated Mutex that the caller holds.
class CondVar {
 public:
  void wait(Mutex& mutex) REQUIRES(mutex) { condition_.wait(mutex); }
  template <typename Rep, typename Period>
  void wait_for(Mutex& mutex, std::chrono::duration<Rep, Period> timeout)
      REQUIRES(mutex) {
    condition_.wait_for(mutex, timeout);
  }
  void notify_one() { condition_.notify_one(); }
  void notify_all() { condition_.notify_all(); }

 private:
  std::condition_variable_any condition_;
};

}  // namespace mlx_flash
