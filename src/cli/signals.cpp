// SPDX-License-Identifier: MIT
#include "cli/signals.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

namespace mlx_flash {
namespace {

// A signal handler has nothing but globals to look at.
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
std::atomic<Session*> g_session{nullptr};
std::atomic<int> g_signal{0};
std::atomic<bool> g_once{false};
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

static_assert(std::atomic<Session*>::is_always_lock_free &&
                  std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

extern "C" void on_signal(int signal) {
  Session* const session = g_session.load();
  const bool again = g_signal.exchange(signal) != 0;
  if (g_once.load() && (again || session == nullptr)) ::_exit(128 + signal);
  if (session != nullptr) session->interrupt();
}

void install(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  action.sa_flags = 0;  // no SA_RESTART: a read of the terminal must return
  sigaction(signal, &action, nullptr);
}

}  // namespace

SignalScope::SignalScope(Mode mode) {
  g_once.store(mode == Mode::kOnce);
  g_signal.store(0);
  install(SIGINT, on_signal);
  install(SIGTERM, on_signal);
}

SignalScope::~SignalScope() {
  g_session.store(nullptr);
  install(SIGINT, SIG_DFL);
  install(SIGTERM, SIG_DFL);
}

void SignalScope::watch(Session* session) {
  g_session.store(session);
}

int SignalScope::caught() const {
  return g_signal.load();
}

void SignalScope::clear() {
  g_signal.store(0);
}

int SignalScope::exit_code() const {
  return 128 + g_signal.load();
}

}  // namespace mlx_flash
