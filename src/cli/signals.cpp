// SPDX-License-Identifier: MIT
#include "cli/signals.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "base/check.h"

namespace mlx_flash {
namespace {

// A signal handler has nothing but globals to look at.
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
std::atomic<Session*> g_session{nullptr};
std::atomic<int> g_signal{0};
std::atomic<bool> g_once{false};
std::atomic<int> g_wake{-1};
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

static_assert(std::atomic<Session*>::is_always_lock_free &&
                  std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

extern "C" void on_signal(int signal) {
  Session* const session = g_session.load();
  const bool again = g_signal.exchange(signal) != 0;
  if (g_once.load() && (again || session == nullptr)) ::_exit(128 + signal);
  if (session != nullptr) session->interrupt();
  // Without it a signal just before a poll() would be noticed only after it.
  const int saved = errno;
  const char byte = 0;
  if (::write(g_wake.load(), &byte, 1) < 0) {
    // Full: it will wake as it is.
  }
  errno = saved;
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
  FLASH_CHECK(::pipe(wake_) == 0);
  for (const int fd : wake_) {
    ::fcntl(fd, F_SETFL, O_NONBLOCK);
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  }
  g_wake.store(wake_[1]);
  g_once.store(mode == Mode::kOnce);
  g_signal.store(0);
  install(SIGINT, on_signal);
  install(SIGTERM, on_signal);
}

SignalScope::~SignalScope() {
  g_session.store(nullptr);
  install(SIGINT, SIG_DFL);
  install(SIGTERM, SIG_DFL);
  g_wake.store(-1);
  for (const int fd : wake_) ::close(fd);
}

void SignalScope::watch(Session* session) {
  Session* const before = g_session.exchange(session);
  // What came too late for one answer does not stop the next.
  if (before != nullptr && session == nullptr) before->clear_interrupt();
}

int SignalScope::caught() const {
  return g_signal.load();
}

void SignalScope::clear() {
  int seen = g_signal.load();
  char bytes[64];
  while (::read(wake_[0], bytes, sizeof bytes) > 0) {
  }
  // Another that came meanwhile stays.
  g_signal.compare_exchange_strong(seen, 0);
}

bool SignalScope::wait_readable(int fd) const {
  if (caught() != 0) return false;
  pollfd polled[2] = {{fd, POLLIN, 0}, {wake_[0], POLLIN, 0}};
  if (::poll(polled, 2, -1) < 0) return false;
  return polled[1].revents == 0;
}

int SignalScope::exit_code() const {
  return 128 + g_signal.load();
}

}  // namespace mlx_flash
