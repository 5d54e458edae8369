// SPDX-License-Identifier: MIT
#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/vector_ops.h"

namespace mlx_flash {

Status check_sampling(const SamplingOptions& options) {
  const auto range = [](const char* name, double value, const char* allowed) {
    return invalid_input(
        fmt::format("{} must be {}, it is {}", name, allowed, value));
  };
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    return range("temp", options.temperature, "0 or more");
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return range("top-p", options.top_p, "above 0 and at most 1");
  }
  if (options.top_k < 0) return range("top-k", options.top_k, "0 or more");
  if (!(options.min_p >= 0 && options.min_p <= 1)) {
    return range("min-p", options.min_p, "between 0 and 1");
  }
  if (!(options.repeat_penalty > 0) || !std::isfinite(options.repeat_penalty)) {
    return range("repeat-penalty", options.repeat_penalty, "above 0");
  }
  if (options.repeat_window < 0) {
    return range("repeat window", options.repeat_window, "0 or more");
  }
  return Status();
}

Sampler::Sampler(const SamplingOptions& options)
    : options_(options), state_(options.seed) {}

uint64_t Sampler::next_random() {
  // Steele, Lea and Flood: Fast splittable pseudorandom number generators.
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

void Sampler::penalise(std::span<float> logits,
                       std::span<const int32_t> history) {
  const size_t window =
      std::min(history.size(), static_cast<size_t>(options_.repeat_window));
  std::vector<int32_t> seen(history.end() - static_cast<ptrdiff_t>(window),
                            history.end());
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const int32_t id : seen) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit < 0 ? logit * options_.repeat_penalty
                      : logit / options_.repeat_penalty;
  }
}

int32_t Sampler::sample(std::span<const float> logits,
                        std::span<const int32_t> history) {
  if (options_.repeat_penalty != 1 && !history.empty()) {
    logits_.assign(logits.begin(), logits.end());
    penalise(logits_, history);
    logits = logits_;
  }
  if (options_.temperature == 0) {
    return static_cast<int32_t>(kernels::argmax(logits.data(), logits.size()));
  }
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) continue;
    candidates_.emplace_back(logits[i], static_cast<int32_t>(i));
  }
  if (candidates_.empty()) return 0;
  // Best first; equal logits by id, so that the order is one on all machines.
  std::sort(
      candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) {
        return a.first != b.first ? a.first > b.first : a.second < b.second;
      });
  const double best = candidates_.front().first;
  double total = 0;
  for (const auto& candidate : candidates_) {
    total += std::exp(candidate.first - best);
  }
  size_t keep = candidates_.size();
  if (options_.top_k > 0) {
    keep = std::min(keep, static_cast<size_t>(options_.top_k));
  }
  double below = 0;  // probability of better candidates
  for (size_t i = 0; i < keep; ++i) {
    const double p = std::exp(candidates_[i].first - best) / total;
    const double p_best = 1 / total;
    if (i > 0 && (below >= static_cast<double>(options_.top_p) ||
                  p < static_cast<double>(options_.min_p) * p_best)) {
      keep = i;
      break;
    }
    below += p;
  }
  const double temperature = options_.temperature;
  double weight = 0;
  for (size_t i = 0; i < keep; ++i) {
    weight += std::exp((candidates_[i].first - best) / temperature);
  }
  const double uniform =
      static_cast<double>(next_random() >> 11) * 0x1.0p-53;  // [0, 1)
  double target = uniform * weight;
  for (size_t i = 0; i < keep; ++i) {
    target -= std::exp((candidates_[i].first - best) / temperature);
    if (target < 0) return candidates_[i].second;
  }
  return candidates_[keep - 1].second;
}

}  // namespace mlx_flash
