// SPDX-License-Identifier: MIT
#include "residency/expert_frequency.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace mlx_flash {
namespace {

// Before anything is known the count of 150 tokens is the score. It weighs as
// much as this sum of squares, so that a small model's noise moves it little.
constexpr std::array<double, ExpertFrequency::kHalfLives> kPrior = {0, 0, 1, 0};
constexpr double kPriorWeight = 300;

constexpr uint32_t kLearnTokens = 8;   // between two fits
constexpr double kLearnMemory = 0.98;  // of the sums, for each fit
constexpr int kLearnSteps = 20;        // of coordinate descent

// Scores are floats, in which larger numbers of rounds are not all different.
constexpr uint32_t kClockMax = uint32_t{1} << 24;
constexpr float kClockHalf = float{1 << 23};

}  // namespace

ExpertFrequency::ExpertFrequency(std::span<const Layer> layers,
                                 ExpertPolicy policy)
    : policy_(policy),
      layers_(layers.begin(), layers.end()),
      tokens_(layers.size()) {
  uint32_t slabs = 0;
  uint32_t most = 0;
  for (const Layer& layer : layers_) {
    FLASH_CHECK(layer.active > 0 && layer.active <= layer.experts);
    first_.push_back(slabs);
    slabs += layer.experts;
    most = std::max(most, layer.experts);
  }
  counts_.resize(slabs);
  scores_.resize(slabs);
  used_.resize(most);
  for (size_t k = 0; k < kHalfLives; ++k) {
    weights_[k] = static_cast<float>(kPrior[k]);
  }
}

void ExpertFrequency::use(uint32_t layer,
                          std::span<const uint32_t> experts,
                          std::span<const uint32_t> rows) {
  FLASH_CHECK(layer < layers_.size() && experts.size() == rows.size());
  const Layer& shape = layers_[layer];
  if (policy_ == ExpertPolicy::kRecency) return score_recency(layer, experts);
  double all = 0;
  for (const uint32_t n : rows) all += n;
  const double tokens = std::max(1.0, all / shape.active);
  std::fill(used_.begin(), used_.end(), 0.0f);
  for (size_t i = 0; i < experts.size(); ++i) {
    FLASH_CHECK(experts[i] < shape.experts);
    used_[experts[i]] = static_cast<float>(rows[i] / tokens);
  }
  // A prompt says how often experts are used, but nothing of what one token
  // tells about the next.
  if (tokens < 2) observe(layer);
  Counts keep;
  for (size_t k = 0; k < kHalfLives; ++k) {
    keep[k] = static_cast<float>(std::exp2(-tokens / kHalfLife[k]));
  }
  for (uint32_t e = 0; e < shape.experts; ++e) {
    Counts& counts = counts_[first_[layer] + e];
    for (size_t k = 0; k < kHalfLives; ++k) {
      counts[k] = counts[k] * keep[k] + (1 - keep[k]) * used_[e];
    }
  }
  tokens_[layer] += tokens;
  score(layer);
}

void ExpertFrequency::score_recency(uint32_t layer,
                                    std::span<const uint32_t> experts) {
  if (++clock_ == kClockMax) {  // the older half becomes equally old
    clock_ /= 2;
    for (float& score : scores_) {
      score = std::max(0.0f, score - kClockHalf);
    }
  }
  std::fill(used_.begin(), used_.end(), 0.0f);
  for (const uint32_t expert : experts) {
    FLASH_CHECK(expert < layers_[layer].experts);
    used_[expert] = 1;
    scores_[first_[layer] + expert] = static_cast<float>(clock_);
  }
}

// What makes a count that has seen only so many tokens one that has always seen
// such.
ExpertFrequency::Counts ExpertFrequency::whole(double tokens) {
  Counts scale = {};
  if (tokens <= 0) return scale;
  for (size_t k = 0; k < kHalfLives; ++k) {
    scale[k] = static_cast<float>(1 / (1 - std::exp2(-tokens / kHalfLife[k])));
  }
  return scale;
}

void ExpertFrequency::observe(uint32_t layer) {
  if (rounds_ >= kLearnTokens * layers_.size()) learn();
  ++rounds_;
  const Counts scale = whole(tokens_[layer]);
  for (uint32_t e = 0; e < layers_[layer].experts; ++e) {
    Counts c = counts_[first_[layer] + e];
    for (size_t k = 0; k < kHalfLives; ++k) c[k] *= scale[k];
    for (size_t k = 0; k < kHalfLives; ++k) {
      products_[k] += c[k] * used_[e];
      for (size_t j = 0; j < kHalfLives; ++j) squares_[k][j] += c[k] * c[j];
    }
  }
}

void ExpertFrequency::learn() {
  rounds_ = 0;
  for (int step = 0; step < kLearnSteps; ++step) {
    for (size_t k = 0; k < kHalfLives; ++k) {
      double rest = products_[k] + kPriorWeight * kPrior[k];
      for (size_t j = 0; j < kHalfLives; ++j) {
        if (j != k) rest -= squares_[k][j] * weights_[j];
      }
      const double weight = rest / (squares_[k][k] + kPriorWeight);
      weights_[k] = static_cast<float>(std::max(0.0, weight));
    }
  }
  for (size_t k = 0; k < kHalfLives; ++k) {
    products_[k] *= kLearnMemory;
    for (double& sum : squares_[k]) sum *= kLearnMemory;
  }
}

void ExpertFrequency::score(uint32_t layer) {
  Counts scale = whole(tokens_[layer]);
  for (size_t k = 0; k < kHalfLives; ++k) scale[k] *= weights_[k];
  for (uint32_t e = 0; e < layers_[layer].experts; ++e) {
    const Counts& counts = counts_[first_[layer] + e];
    float sum = 0;
    for (size_t k = 0; k < kHalfLives; ++k) sum += scale[k] * counts[k];
    scores_[first_[layer] + e] = sum;
  }
}

ExpertFrequency::State ExpertFrequency::state() const {
  State state;
  state.weights = weights_;
  for (const double tokens : tokens_) {
    state.tokens = std::max(state.tokens, tokens);
  }
  state.counts = counts_;
  return state;
}

bool ExpertFrequency::restore(const State& state) {
  const auto sane = [](const Counts& values, float most) {
    return std::all_of(values.begin(), values.end(), [&](float value) {
      return value >= 0 && value <= most;  // false for NaN
    });
  };
  if (state.counts.size() != counts_.size() || !(state.tokens > 0) ||
      !std::isfinite(state.tokens) || !sane(state.weights, 1e3f)) {
    return false;
  }
  for (const Counts& counts : state.counts) {
    if (!sane(counts, 1)) return false;
  }
  weights_ = state.weights;
  counts_ = state.counts;
  std::fill(tokens_.begin(), tokens_.end(), state.tokens);
  if (policy_ == ExpertPolicy::kRecency) return true;
  for (uint32_t layer = 0; layer < layers_.size(); ++layer) score(layer);
  return true;
}

}  // namespace mlx_flash
