// SPDX-License-Identifier: MIT
#include "interrupts.h"

#include <csignal>

#include <array>
#include <atomic>
#include <mutex>

namespace mlx_flash::python {
namespace {

// A signal handler can only reach globals. All lock-free.
std::array<std::atomic<Store*>, kWatchedMax> watched;
std::atomic<void (*)(int)> next_handler{nullptr};
std::atomic<void (*)(int, siginfo_t*, void*)> next_action{nullptr};
std::mutex install_mutex;

void on_interrupt(int signal, siginfo_t* info, void* context) {
  for (std::atomic<Store*>& slot : watched) {
    if (Store* store = slot.load()) store->interrupt();
  }
  if (auto* action = next_action.load()) {
    action(signal, info, context);
  } else if (auto* handler = next_handler.load()) {
    handler(signal);
  }
}

}  // namespace

void ensure_handler() {
  struct sigaction now = {};
  if (sigaction(SIGINT, nullptr, &now) != 0) return;
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_interrupt) {
    return;
  }
  const std::lock_guard lock(install_mutex);
  // Whoever ignores SIGINT, or wants to die of it, shall have it so.
  if ((now.sa_flags & SA_SIGINFO) == 0 &&
      (now.sa_handler == SIG_IGN || now.sa_handler == SIG_DFL)) {
    return;
  }
  const bool action = (now.sa_flags & SA_SIGINFO) != 0;
  next_action = action ? now.sa_sigaction : nullptr;
  next_handler = action ? nullptr : now.sa_handler;
  struct sigaction ours = now;
  ours.sa_flags |= SA_SIGINFO;
  ours.sa_sigaction = on_interrupt;
  sigaction(SIGINT, &ours, nullptr);
}

void watch_interrupts(Store& store) {
  for (std::atomic<Store*>& slot : watched) {
    Store* none = nullptr;
    if (slot.compare_exchange_strong(none, &store)) break;
  }
  ensure_handler();
}

void unwatch_interrupts(Store& store) {
  for (std::atomic<Store*>& slot : watched) {
    Store* it = &store;
    slot.compare_exchange_strong(it, nullptr);
  }
}

}  // namespace mlx_flash::python
