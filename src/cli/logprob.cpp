// SPDX-License-Identifier: MIT
#include "cli/logprob.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mlx_flash {

double log_sum_exp(std::span<const float> logits) {
  const auto top = std::max_element(logits.begin(), logits.end());
  // The largest term is 1; left out, so that many small ones are not lost
  // against it.
  double rest = 0;
  for (auto it = logits.begin(); it != logits.end(); ++it) {
    if (it != top) rest += std::exp(double{*it} - double{*top});
  }
  return double{*top} + std::log1p(rest);
}

std::vector<Candidate> best_candidates(std::span<const float> logits,
                                       double log_sum,
                                       size_t count) {
  count = std::min(count, logits.size());
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto logit = [&](int32_t id) {
    return logits[static_cast<size_t>(id)];
  };
  std::partial_sort(ids.begin(),
                    ids.begin() + static_cast<std::ptrdiff_t>(count),
                    ids.end(),
                    [&](int32_t a, int32_t b) {
                      return logit(a) != logit(b) ? logit(a) > logit(b) : a < b;
                    });
  std::vector<Candidate> best(count);
  for (size_t i = 0; i < count; ++i) {
    best[i] = {ids[i], double{logit(ids[i])} - log_sum};
  }
  return best;
}

}  // namespace mlx_flash
