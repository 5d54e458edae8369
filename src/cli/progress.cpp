// SPDX-License-Identifier: MIT
#include "cli/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "cli/console.h"

namespace mlx_flash {
namespace {

constexpr double kPatienceSeconds = 0.4;  // shorter work shows nothing
constexpr double kRedrawSeconds = 0.1;
constexpr int kBarMax = 30;

}  // namespace

Progress::Progress(std::string label, std::string unit, bool enabled)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      enabled_(enabled && stderr_is_terminal()),
      started_s_(now_seconds()) {}

Progress::~Progress() {
  clear();
}

void Progress::update(uint64_t done, uint64_t total) {
  if (!enabled_ || total == 0) return;
  const double now = now_seconds();
  if (now - started_s_ < kPatienceSeconds || now - drawn_at_s_ < kRedrawSeconds)
    return;
  drawn_at_s_ = now;
  drawn_ = true;
  write_stderr("\r\x1b[K" + progress_text(label_,
                                          unit_,
                                          done,
                                          total,
                                          now - started_s_,
                                          terminal_columns() - 1));
}

void Progress::clear() {
  if (drawn_) write_stderr("\r\x1b[K");
  drawn_ = false;
}

std::string progress_text(const std::string& label,
                          const std::string& unit,
                          uint64_t done,
                          uint64_t total,
                          double elapsed_s,
                          int columns) {
  const double share = std::clamp(
      static_cast<double>(done) / static_cast<double>(total), 0., 1.);
  std::string tail = fmt::format(
      "{:3.0f}% {}/{} {}", std::min(99.0, share * 100), done, total, unit);
  if (done >= total) {
    tail = fmt::format("100% {}/{} {}", done, total, unit);
  }
  if (done > 0 && elapsed_s > 0) {
    const double rate = static_cast<double>(done) / elapsed_s;
    tail += fmt::format(" | {:.1f} {}/s", rate, unit);
    if (done < total) {
      const double left = static_cast<double>(total - done) / rate;
      tail += fmt::format(" | {} left", format_seconds(left));
    }
  }
  std::string text = label + " ";
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
