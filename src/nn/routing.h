// SPDX-License-Identifier: MIT
#pragma once

// Which experts a token goes to, and with what weights: from the router's
// logits to a list of `top_k` experts, the heaviest first. Pure functions of
// one row, in float32, with one canonical order of every sum (kernels/
// vector_ops.h); of equal scores the expert with the lower number wins.
//
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mlx_flash::nn {

enum class Scoring {
  kSoftmax,          // over all experts, before choosing
  kSoftmaxOfChosen,  // chosen by logit, softmax over those
  kSigmoid,
};

// How the best groups of experts are found, where only those may be used.
enum class GroupScore {
  kBest,     // the group's best expert
  kTwoBest,  // the sum of its two best
};

struct Routing {
  uint32_t experts = 0;
  uint32_t top_k = 0;
  Scoring scoring = Scoring::kSoftmax;
  bool normalise = false;  // weights of a token add up to `scale`
  float scale = 1;
  // Experts lie in `groups` equal groups, of which `groups_kept` are used: the
  // scores of all others become 0, as in mlx-lm, and may still win against
  // negative ones. 1: no groups.
  uint32_t groups = 1;
  uint32_t groups_kept = 1;
  GroupScore group_score = GroupScore::kTwoBest;
};

// Scratch of choose_experts(), reused from row to row.
struct RoutingScratch {
  std::vector<float> scores;
  std::vector<float> choice;
  std::vector<bool> taken;
};

// `logits`: one row, routing.experts of them. `correction` is added to the
// scores for choosing only; empty: none. Writes top_k experts and weights.
// NaN is the lowest score. REQUIRES: 1 <= top_k <= experts; groups divides
// experts and is at least groups_kept >= 1; with kTwoBest a group has at least
// two experts.
void choose_experts(const Routing& routing,
                    const float* logits,
                    std::span<const float> correction,
                    RoutingScratch& scratch,
                    uint32_t* experts,
                    float* weights);

// The rows of a forward, sorted by expert.
struct ExpertRows {
  std::vector<uint32_t> experts;  // that are needed, ascending
  std::vector<uint32_t> counts;   // rows of each
  // Places of each expert's rows: those of experts[i] are
  // [offsets[i], offsets[i] + counts[i]).
  std::vector<uint32_t> offsets;
  std::vector<uint32_t> rows;    // by place: the row of the forward, ascending
  std::vector<uint32_t> places;  // by row * top_k + slot

  // REQUIRES: chosen[i] < count.
  void group(std::span<const uint32_t> chosen, uint32_t top_k, uint32_t count);
};

}  // namespace mlx_flash::nn
