// SPDX-License-Identifier: MIT
#include "cli/pull_progress.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "cli/console.h"

namespace mlx_flash {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kLineSeconds = 60;  // where there is no terminal
constexpr double kRateSeconds = 8;
constexpr int kBarMax = 30;

}  // namespace

PullProgress::PullProgress(std::string label, bool quiet)
    : label_(std::move(label)),
      quiet_(quiet),
      terminal_(stderr_is_terminal()),
      drawn_at_s_(now_seconds()) {}

PullProgress::~PullProgress() {
  clear();
}

double PullProgress::rate(double now_s, uint64_t fetched_bytes) {
  samples_.emplace_back(now_s, fetched_bytes);
  while (samples_.size() > 2 && now_s - samples_.front().first > kRateSeconds) {
    samples_.pop_front();
  }
  const auto& [first_s, first_bytes] = samples_.front();
  const double seconds = now_s - first_s;
  if (seconds < 0.5 || fetched_bytes < first_bytes) return 0;
  return static_cast<double>(fetched_bytes - first_bytes) / seconds;
}

void PullProgress::update(const hub::DownloadProgress& progress) {
  if (quiet_ || progress.total_bytes == 0) return;
  const std::lock_guard lock(mutex_);
  const double now = now_seconds();
  const double bytes_per_s = rate(now, progress.fetched_bytes);
  if (now - drawn_at_s_ < (terminal_ ? kRedrawSeconds : kLineSeconds)) return;
  drawn_at_s_ = now;
  if (!terminal_) {
    write_stderr(pull_progress_text(label_, progress, bytes_per_s, 200) + "\n");
    return;
  }
  drawn_ = true;
  write_stderr("\r\x1b[K" +
               pull_progress_text(
                   label_, progress, bytes_per_s, terminal_columns() - 1));
}

void PullProgress::note(const std::string& text) {
  if (quiet_) return;
  clear();
  write_stderr(one_line(text) + "\n");
}

void PullProgress::clear() {
  const std::lock_guard lock(mutex_);
  if (drawn_) write_stderr("\r\x1b[K");
  drawn_ = false;
}

std::string pull_progress_text(const std::string& label,
                               const hub::DownloadProgress& progress,
                               double rate,
                               int columns) {
  const auto done = static_cast<double>(progress.done_bytes);
  const auto total = static_cast<double>(progress.total_bytes);
  const double share = std::clamp(total == 0 ? 1.0 : done / total, 0.0, 1.0);
  std::string tail =
      fmt::format("{:3}% {} of {}",
                  static_cast<int>(share * 100),  // 100 only when it is all
                  format_bytes(done),
                  format_bytes(total));
  if (!progress.waiting_for.empty()) {
    tail += " | another process downloads it, waiting";
  } else if (progress.checking) {
    tail += " | checking";
  } else if (rate > 0 && done < total) {
    tail += fmt::format(" | {}/s | {} left",
                        format_bytes(rate),
                        format_seconds((total - done) / rate));
  }
  std::string text = one_line(label) + " ";
  const int bar = std::min(
      kBarMax, columns - static_cast<int>(text.size() + tail.size()) - 3);
  if (bar >= 5) {
    const auto filled = static_cast<size_t>(share * bar);
    text += '[' + std::string(filled, '#') +
            std::string(static_cast<size_t>(bar) - filled, '.') + "] ";
  }
  text += tail;
  if (columns > 0 && text.size() > static_cast<size_t>(columns)) {
    text.resize(static_cast<size_t>(columns));
  }
  return text;
}

}  // namespace mlx_flash
