// SPDX-License-Identifier: MIT
#pragma once

// SIGINT and SIGTERM of commands without a session.
//
// A signal handler has no argument of its own, so the state behind these
// classes is process-wide: at most one of them exists at a time.

#include <sys/types.h>

#include <atomic>
#include <string>
#include <thread>

namespace mlx_flash {

// Turns the first signal into a flag. A command that does not end within half
// a second after it (a name being looked up, a full disk queue) is ended: only
// for work that may be cut off anywhere, as downloads are.
class StopSignal {
 public:
  // `words`: what is said on stderr when the command is ended.
  explicit StopSignal(std::string words);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Counts the end of this parent process as SIGTERM.
  void watch_parent(long pid) { parent_.store(pid); }

  const std::atomic<bool>& flag() const;
  // 128 + signal; 0: none came.
  int exit_code() const;

 private:
  std::string words_;
  std::atomic<bool> over_{false};
  std::atomic<long> parent_{0};
  std::thread watchdog_;
};

// Hands signals on to a child process while it lives.
class ForwardSignals {
 public:
  explicit ForwardSignals(pid_t child);
  ~ForwardSignals();
  ForwardSignals(const ForwardSignals&) = delete;
  ForwardSignals& operator=(const ForwardSignals&) = delete;
};

}  // namespace mlx_flash
