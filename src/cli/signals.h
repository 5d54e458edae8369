// SPDX-License-Identifier: MIT
#pragma once

// SIGINT and SIGTERM of a command that runs a session: the first asks the
// session to stop, so that what was said so far and its figures are printed.
//
// A signal handler has no argument of its own, so the state behind this class
// is process-wide: at most one SignalScope exists at a time.

#include "mlx_flash/engine.h"

namespace mlx_flash {

class SignalScope {
 public:
  enum class Mode {
    kOnce,    // the second signal ends the process at once
    kRepeat,  // each SIGINT stops one answer
  };

  explicit SignalScope(Mode mode);
  ~SignalScope();
  SignalScope(const SignalScope&) = delete;
  SignalScope& operator=(const SignalScope&) = delete;

  // The session that a signal stops; null: none. In kOnce a signal that finds
  // no session ends the process. REQUIRES: the session outlives the watch.
  void watch(Session* session);

  // The signal that came since the start or the last clear(); 0: none.
  int caught() const;
  void clear();

  // Waits until there is something to read from `fd` (or its end). False if a
  // signal came, be it before the call.
  bool wait_readable(int fd) const;

  // 128 + signal, as shells report it. REQUIRES: caught() != 0.
  int exit_code() const;

 private:
  int wake_[2] = {-1, -1};  // a pipe: the handler writes, wait_readable() polls
};

}  // namespace mlx_flash
