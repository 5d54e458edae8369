// SPDX-License-Identifier: MIT
#pragma once

// A progress bar with rate and time left, on stderr when that is a terminal.
// Appears only when the work has lasted a moment, redraws a few times a second
// and leaves an empty line behind. Thread-compatible.

#include <cstdint>
#include <string>

namespace mlx_flash {

class Progress {
 public:
  // `label`: what is being done. `unit`: what is counted. A disabled bar
  // (quiet, or no terminal) costs nothing.
  Progress(std::string label, std::string unit, bool enabled);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(uint64_t done, uint64_t total);
  void clear();  // removes the bar from the terminal

 private:
  std::string label_;
  std::string unit_;
  bool enabled_;
  bool drawn_ = false;
  double started_s_;
  double drawn_at_s_ = 0;
};

// The text of a bar of at most `columns` characters.
std::string progress_text(const std::string& label,
                          const std::string& unit,
                          uint64_t done,
                          uint64_t total,
                          double elapsed_s,
                          int columns);

}  // namespace mlx_flash
