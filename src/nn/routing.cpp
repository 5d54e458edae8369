// SPDX-License-Identifier: MIT
#include "nn/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/vector_ops.h"

namespace mlx_flash::nn {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

float key(float score) {
  return std::isnan(score) ? kLowest : score;
}

float group_score(const Routing& routing, const float* scores, size_t n) {
  float best = kLowest;
  float second = kLowest;
  for (size_t i = 0; i < n; ++i) {
    const float score = key(scores[i]);
    if (score > best) {
      second = best;
      best = score;
    } else if (score > second) {
      second = score;
    }
  }
  return routing.group_score == GroupScore::kBest ? best : best + second;
}

// The best of those not taken, the first of equals.
uint32_t best_left(std::span<const float> scores,
                   const std::vector<bool>& taken) {
  uint32_t best = UINT32_MAX;
  for (uint32_t i = 0; i < scores.size(); ++i) {
    if (taken[i]) continue;
    if (best == UINT32_MAX || key(scores[i]) > key(scores[best])) best = i;
  }
  return best;
}

// Sets the scores outside the best groups to 0.
void keep_groups(const Routing& routing,
                 std::vector<float>& scores,
                 std::vector<bool>& taken) {
  const size_t size = routing.experts / routing.groups;
  std::vector<float> of_group(routing.groups);
  for (size_t g = 0; g < routing.groups; ++g) {
    of_group[g] = group_score(routing, scores.data() + g * size, size);
  }
  taken.assign(routing.groups, false);
  for (uint32_t i = 0; i < routing.groups_kept; ++i) {
    taken[best_left(of_group, taken)] = true;
  }
  for (size_t g = 0; g < routing.groups; ++g) {
    if (!taken[g]) std::fill_n(scores.data() + g * size, size, 0.0f);
  }
}

}  // namespace

void choose_experts(const Routing& routing,
                    const float* logits,
                    std::span<const float> correction,
                    RoutingScratch& scratch,
                    uint32_t* experts,
                    float* weights) {
  const size_t n = routing.experts;
  std::vector<float>& scores = scratch.scores;
  scores.assign(logits, logits + n);
  if (routing.scoring == Scoring::kSoftmax) {
    kernels::softmax(scores.data(), n);
  } else if (routing.scoring == Scoring::kSigmoid) {
    kernels::sigmoid(scores.data(), n);
  }
  std::vector<float>& choice = scratch.choice;
  choice = scores;
  if (!correction.empty()) {
    kernels::add(choice.data(), correction.data(), n, choice.data());
  }
  if (routing.groups > 1) {
    keep_groups(routing, choice, scratch.taken);
    // Without a correction the scores that choose are those that weigh.
    if (correction.empty()) scores = choice;
  }
  scratch.taken.assign(n, false);
  for (uint32_t i = 0; i < routing.top_k; ++i) {
    experts[i] = best_left(choice, scratch.taken);
    scratch.taken[experts[i]] = true;
    weights[i] = scores[experts[i]];
  }
  if (routing.scoring == Scoring::kSoftmaxOfChosen) {
    kernels::softmax(weights, routing.top_k);
  }
  if (routing.normalise) {
    float sum = 0;
    for (uint32_t i = 0; i < routing.top_k; ++i) sum += weights[i];
    for (uint32_t i = 0; i < routing.top_k; ++i) weights[i] /= sum;
  }
  for (uint32_t i = 0; i < routing.top_k; ++i) weights[i] *= routing.scale;
}

void ExpertRows::group(std::span<const uint32_t> chosen,
                       uint32_t top_k,
                       uint32_t count) {
  std::vector<uint32_t> next(count, 0);  // rows of each, then the next place
  for (const uint32_t e : chosen) ++next[e];
  experts.clear();
  counts.clear();
  offsets.clear();
  uint32_t place = 0;
  for (uint32_t e = 0; e < count; ++e) {
    const uint32_t n = next[e];
    next[e] = place;
    if (n == 0) continue;
    experts.push_back(e);
    counts.push_back(n);
    offsets.push_back(place);
    place += n;
  }
  rows.resize(chosen.size());
  places.resize(chosen.size());
  for (size_t i = 0; i < chosen.size(); ++i) {
    const uint32_t at = next[chosen[i]]++;
    rows[at] = static_cast<uint32_t>(i / top_k);
    places[i] = at;
  }
}

}  // namespace mlx_flash::nn
