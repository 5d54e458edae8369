// SPDX-License-Identifier: MIT
#pragma once

// Natural log-probabilities from a row of logits. Pure functions, double
// inside.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace mlx_flash {

// log(sum(exp(logits))), shifted by the largest so that nothing overflows.
// NaN if any logit is. REQUIRES: !logits.empty()
double log_sum_exp(std::span<const float> logits);

struct Candidate {
  int32_t id = 0;
  double logprob = 0;
};

// The `count` most likely, best first; of equal logits the smaller id first.
std::vector<Candidate> best_candidates(std::span<const float> logits,
                                       double log_sum,
                                       size_t count);

}  // namespace mlx_flash
