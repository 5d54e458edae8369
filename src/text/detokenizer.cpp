// SPDX-License-Identifier: MIT
#include "text/detokenizer.h"

#include <algorithm>

namespace mlx_flash {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer),
      skip_special_(skip_special),
      run_(tokenizer.decoder()) {}

std::string Detokenizer::push(int32_t id) {
  std::string out;
  const auto token = tokenizer_.id_to_token(id);
  if (!token || (skip_special_ && tokenizer_.is_special(id))) return out;
  run_.push(*token, out);
  return out;
}

std::string Detokenizer::finish() {
  std::string out;
  run_.finish(out);
  return out;
}

StopMatcher::StopMatcher(std::vector<std::string> stops)
    : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& s) { return s.empty(); });
}

// Where the longest end of held_ begins that a stop string begins with.
size_t StopMatcher::held_from() const {
  size_t from = held_.size();
  for (const std::string& stop : stops_) {
    size_t n = std::min(stop.size() - 1, held_.size());
    for (; n > held_.size() - from; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) != 0) continue;
      from = held_.size() - n;
      break;
    }
  }
  return from;
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  size_t best_begin = std::string::npos;
  size_t best_end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < best_end || (end == best_end && begin < best_begin)) {
      best_begin = begin;
      best_end = end;
      stop_ = stop;
    }
  }
  if (best_begin != std::string::npos) {
    stopped_ = true;
    std::string out = held_.substr(0, best_begin);
    held_.clear();
    return out;
  }
  const size_t from = held_from();
  std::string out = held_.substr(0, from);
  held_.erase(0, from);
  return out;
}

std::string StopMatcher::finish() {
  if (stopped_) return {};
  return std::move(held_);
}

}  // namespace mlx_flash
