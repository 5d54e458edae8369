// SPDX-License-Identifier: MIT
#pragma once

// Chooses the next token from logits. A pure function of logits, history,
// options and the state of its generator: the same seed gives the same tokens
// on every machine.
//
// Filters as in mlx-lm (sample_utils.py): top-p and min-p look at the
// probabilities at temperature 1, top-k at the order; the temperature acts on
// what they leave. Thread-compatible.

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ranking.h"
#include "mlx_flash/engine.h"

namespace mlx_flash {

// Fails naming the option that is out of range.
Status check_sampling(const SamplingOptions& options);

class Sampler {
 public:
  // REQUIRES: check_sampling(options).ok()
  explicit Sampler(const SamplingOptions& options);

  // How many of the best logits sample() would use; 0: none by themselves.
  size_t ranked() const;

  // `logits` may be logits or log-probabilities; `history` the tokens so far.
  // `ranking`: empty, or the first ranked() of the logits in order: the same
  // token, sooner.
  int32_t sample(std::span<const float> logits,
                 std::span<const int32_t> history,
                 std::span<const kernels::Ranked> ranking = {});

 private:
  uint64_t next_random();  // splitmix64
  void penalise(std::span<float> logits, std::span<const int32_t> history);
  void fill_candidates(std::span<const float> logits,
                       std::span<const kernels::Ranked> ranking);
  // The i-th best, of those that there are. Sorts no more than it has to.
  const kernels::Ranked& candidate(size_t i);

  SamplingOptions options_;
  uint64_t state_;
  std::vector<float> logits_;                // after penalties
  std::vector<kernels::Ranked> candidates_;  // of the next token
  size_t in_order_ = 0;  // of them the first, best first; the rest in any order
};

}  // namespace mlx_flash
