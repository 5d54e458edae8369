// SPDX-License-Identifier: MIT
#include "memory_guard.h"

#include <chrono>
#include <utility>

namespace mlx_flash::python {
namespace {

// New memory comes at some 4 GB/s: a few MB between two looks, each of which
// takes some 20 us.
constexpr std::chrono::milliseconds kPeriod{2};

}  // namespace

MemoryGuard::MemoryGuard(std::function<void()> look)
    : look_(std::move(look)), thread_([this] { run(); }) {}

MemoryGuard::~MemoryGuard() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void MemoryGuard::watch(bool on) {
  {
    const std::lock_guard lock(mutex_);
    if (watching_ == on) return;
    watching_ = on;
  }
  changed_.notify_all();
}

void MemoryGuard::run() {
  std::unique_lock lock(mutex_);
  while (!ending_) {
    if (!watching_) {
      changed_.wait(lock);
      continue;
    }
    changed_.wait_for(lock, kPeriod);
    if (ending_ || !watching_) continue;
    lock.unlock();
    look_();
    lock.lock();
  }
}

}  // namespace mlx_flash::python
