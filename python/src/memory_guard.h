// SPDX-License-Identifier: MIT
#pragma once

// Looks at the process's memory while a prompt is read.
//
// Between two operations of ours MLX's own may make arrays of any size,
// attention scores above all: nothing of ours runs then, so a thread looks. It
// sleeps unless it is told that a forward of many tokens began.
//
// Thread-safe.

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace mlx_flash::python {

class MemoryGuard {
 public:
  // `look` runs on the guard's thread, every other millisecond while it
  // watches.
  explicit MemoryGuard(std::function<void()> look);
  // Waits for a look that is under way.
  ~MemoryGuard();
  MemoryGuard(const MemoryGuard&) = delete;
  MemoryGuard& operator=(const MemoryGuard&) = delete;

  void watch(bool on);

 private:
  void run();

  std::function<void()> look_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool watching_ = false;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace mlx_flash::python
