// SPDX-License-Identifier: MIT
#include "interrupts.h"

#include <csignal>

#include <array>
#include <atomic>
#include <mutex>

namespace mlx_flash::python {
namespace {

// What a signal handler can reach. Constant-initialised, so that reaching it
// takes no lock.
struct Watched {
  std::array<std::atomic<Store*>, kWatchedMax> stores = {};
  std::atomic<void (*)(int)> next_handler = nullptr;
  std::atomic<void (*)(int, siginfo_t*, void*)> next_action = nullptr;
  std::mutex install;  // not for the handler
};

Watched& watched() {
  static constinit Watched state;
  return state;
}

void on_interrupt(int signal, siginfo_t* info, void* context) {
  for (std::atomic<Store*>& slot : watched().stores) {
    if (Store* store = slot.load()) store->interrupt();
  }
  if (auto* action = watched().next_action.load()) {
    action(signal, info, context);
  } else if (auto* handler = watched().next_handler.load()) {
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
  const std::lock_guard lock(watched().install);
  // Whoever ignores SIGINT, or wants to die of it, shall have it so.
  if ((now.sa_flags & SA_SIGINFO) == 0 &&
      (now.sa_handler == SIG_IGN || now.sa_handler == SIG_DFL)) {
    return;
  }
  const bool action = (now.sa_flags & SA_SIGINFO) != 0;
  watched().next_action = action ? now.sa_sigaction : nullptr;
  watched().next_handler = action ? nullptr : now.sa_handler;
  struct sigaction ours = now;
  ours.sa_flags |= SA_SIGINFO;
  ours.sa_sigaction = on_interrupt;
  sigaction(SIGINT, &ours, nullptr);
}

void watch_interrupts(Store& store) {
  for (std::atomic<Store*>& slot : watched().stores) {
    Store* none = nullptr;
    if (slot.compare_exchange_strong(none, &store)) break;
  }
  ensure_handler();
}

void unwatch_interrupts(Store& store) {
  for (std::atomic<Store*>& slot : watched().stores) {
    Store* it = &store;
    slot.compare_exchange_strong(it, nullptr);
  }
}

}  // namespace mlx_flash::python
