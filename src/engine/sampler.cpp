// SPDX-License-Identifier: MIT
#include "engine/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "kernels/vector_ops.h"

namespace mlx_flash {
namespace {

// The first candidates that are sorted; then eight times as many. A draw is
// nearly always among a few, of a vocabulary of 150,000.
constexpr size_t kOrderedAtOnce = 64;

// What all logits weigh together. In the order of ids, so that it is one
// however candidates were found, and needs no sorting.
double weight_of_all(std::span<const float> logits,
                     double best,
                     double temperature) {
  double sum = 0;
  for (const float logit : logits) {
    if (!std::isnan(logit)) sum += std::exp((logit - best) / temperature);
  }
  return sum;
}

}  // namespace

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

size_t Sampler::ranked() const {
  if (options_.repeat_penalty != 1) return 0;
  if (options_.temperature == 0) return 1;
  const auto k = static_cast<size_t>(options_.top_k);
  return k <= kernels::kRankedMost ? k : 0;
}

void Sampler::fill_candidates(std::span<const float> logits,
                              std::span<const kernels::Ranked> ranking) {
  const auto k = static_cast<size_t>(options_.top_k);
  if (!ranking.empty()) {
    candidates_.assign(ranking.begin(), ranking.end());
    in_order_ = candidates_.size();
    return;
  }
  if (k > 0 && k <= kernels::kRankedMost) {
    candidates_.resize(k);
    candidates_.resize(kernels::rank(
        logits.data(), logits.size(), 0, k, candidates_.data(), 0));
    in_order_ = candidates_.size();
    return;
  }
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) continue;
    candidates_.push_back({logits[i], static_cast<uint32_t>(i)});
  }
  in_order_ = 0;
  if (k == 0 || candidates_.empty()) return;
  const size_t kept = std::min(k, candidates_.size());
  candidate(kept - 1);
  candidates_.resize(kept);
  in_order_ = kept;
}

const kernels::Ranked& Sampler::candidate(size_t i) {
  while (in_order_ <= i) {
    const size_t end = std::min(
        candidates_.size(), std::max(i + 1, kOrderedAtOnce + 8 * in_order_));
    std::partial_sort(candidates_.begin() + static_cast<ptrdiff_t>(in_order_),
                      candidates_.begin() + static_cast<ptrdiff_t>(end),
                      candidates_.end(),
                      kernels::ranks_before);
    in_order_ = end;
  }
  return candidates_[i];
}

int32_t Sampler::sample(std::span<const float> logits,
                        std::span<const int32_t> history,
                        std::span<const kernels::Ranked> ranking) {
  if (options_.repeat_penalty != 1 && !history.empty()) {
    logits_.assign(logits.begin(), logits.end());
    penalise(logits_, history);
    logits = logits_;
    ranking = {};
  }
  if (options_.temperature == 0) {
    if (!ranking.empty()) return static_cast<int32_t>(ranking.front().id);
    return static_cast<int32_t>(kernels::argmax(logits.data(), logits.size()));
  }
  fill_candidates(logits, ranking);
  if (candidates_.empty()) return 0;
  const double best = candidate(0).value;
  size_t keep = candidates_.size();
  if (options_.top_p < 1 || options_.min_p > 0) {
    const double total = weight_of_all(logits, best, 1);
    double below = 0;  // probability of better candidates
    for (size_t i = 0; i < keep; ++i) {
      const double p = std::exp(candidate(i).value - best) / total;
      const double p_best = 1 / total;
      if (i > 0 && (below >= static_cast<double>(options_.top_p) ||
                    p < static_cast<double>(options_.min_p) * p_best)) {
        keep = i;
        break;
      }
      below += p;
    }
  }
  const double temperature = options_.temperature;
  double weight = 0;
  if (options_.top_k == 0 && keep == candidates_.size()) {
    weight = weight_of_all(logits, best, temperature);
  } else {
    for (size_t i = 0; i < keep; ++i) {
      weight += std::exp((candidate(i).value - best) / temperature);
    }
  }
  const double uniform =
      static_cast<double>(next_random() >> 11) * 0x1.0p-53;  // [0, 1)
  double target = uniform * weight;
  for (size_t i = 0; i < keep; ++i) {
    const kernels::Ranked& drawn = candidate(i);
    target -= std::exp((drawn.value - best) / temperature);
    if (target < 0) return static_cast<int32_t>(drawn.id);
  }
  return static_cast<int32_t>(candidate(keep - 1).id);
}

}  // namespace mlx_flash
