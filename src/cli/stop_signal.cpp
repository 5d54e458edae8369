// SPDX-License-Identifier: MIT
#include "cli/stop_signal.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <utility>

#include "cli/console.h"

namespace mlx_flash {
namespace {

constexpr auto kLook = std::chrono::milliseconds(25);
constexpr auto kGrace = std::chrono::milliseconds(400);

// A signal handler has nothing but globals to look at.
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
std::atomic<bool> g_stop{false};
std::atomic<int> g_signal{0};
std::atomic<int> g_child{0};
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

static_assert(std::atomic<bool>::is_always_lock_free &&
                  std::atomic<int>::is_always_lock_free,
              "a signal handler may only touch lock-free atomics");

extern "C" void on_stop(int signal) {
  g_signal.store(signal);
  g_stop.store(true);
}

extern "C" void on_forward(int signal) {
  const int child = g_child.load();
  if (child > 0) ::kill(child, signal);
}

// Signals that are ignored (nohup) stay so.
void install(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

}  // namespace

StopSignal::StopSignal(std::string words) : words_(std::move(words)) {
  g_stop.store(false);
  g_signal.store(0);
  install(on_stop);
  watchdog_ = std::thread([this] {
    auto stopped_for = std::chrono::milliseconds(0);
    while (!over_.load()) {
      if (parent_.load() != 0 && ::getppid() != parent_.load()) {
        on_stop(SIGTERM);
      }
      if (g_stop.load()) stopped_for += kLook;
      if (stopped_for >= kGrace) {
        write_stderr(words_);
        ::_exit(exit_code());
      }
      std::this_thread::sleep_for(kLook);
    }
  });
}

StopSignal::~StopSignal() {
  over_.store(true);
  watchdog_.join();
  install(SIG_DFL);
}

const std::atomic<bool>& StopSignal::flag() const {
  return g_stop;
}

int StopSignal::exit_code() const {
  const int signal = g_signal.load();
  return signal == 0 ? 0 : 128 + signal;
}

ForwardSignals::ForwardSignals(pid_t child) {
  g_child.store(child);
  install(on_forward);
}

ForwardSignals::~ForwardSignals() {
  g_child.store(0);
  install(SIG_DFL);
}

}  // namespace mlx_flash
