// SPDX-License-Identifier: MIT
#pragma once

// The bar of a download: bytes, rate, time left. On a terminal it is redrawn in
// place; elsewhere a line a minute tells that something happens.
// Not thread-safe, but for note().

#include <deque>
#include <mutex>
#include <string>
#include <utility>

#include "hub/download.h"

namespace mlx_flash {

class PullProgress {
 public:
  PullProgress(std::string label, bool quiet);
  ~PullProgress();
  PullProgress(const PullProgress&) = delete;
  PullProgress& operator=(const PullProgress&) = delete;

  void update(const hub::DownloadProgress& progress);
  // A line of its own above the bar. Thread-safe.
  void note(const std::string& text);
  void clear();

 private:
  double rate(double now_s, uint64_t fetched_bytes);

  std::string label_;
  bool quiet_;
  bool terminal_;
  std::mutex mutex_;
  bool drawn_ = false;
  double drawn_at_s_;
  // When how much was fetched, over the last seconds: the rate of now.
  std::deque<std::pair<double, uint64_t>> samples_;
};

// "org/name [####....]  45% 1.2 GB of 2.6 GB | 35.1 MB/s | 0:40 left", at most
// `columns` characters. `rate`: bytes per second; 0: unknown.
std::string pull_progress_text(const std::string& label,
                               const hub::DownloadProgress& progress,
                               double rate,
                               int columns);

}  // namespace mlx_flash
