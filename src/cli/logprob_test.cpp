// SPDX-License-Identifier: MIT
#include "cli/logprob.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace mlx_flash {
namespace {

TEST(Logprob, ProbabilitiesAddUpToOne) {
  const std::vector<float> logits{0.5f, -2, 3, 3, 100, -100};
  const double log_sum = log_sum_exp(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - log_sum);
  EXPECT_NEAR(sum, 1, 1e-12);
}

TEST(Logprob, LargeLogitsNeitherOverflowNorVanish) {
  EXPECT_NEAR(
      log_sum_exp(std::vector<float>{1e4f, 1e4f}), 1e4 + std::log(2.0), 1e-9);
  EXPECT_NEAR(log_sum_exp(std::vector<float>{-1e4f, -1e4f}),
              -1e4 + std::log(2.0),
              1e-9);
  // Small terms count: a float sum would lose them.
  std::vector<float> many(100001, -20.0f);
  many[0] = 0;
  EXPECT_NEAR(log_sum_exp(many), std::log1p(100000 * std::exp(-20.0)), 1e-15);
}

TEST(Logprob, AMaskedTokenHasNoProbability) {
  const float none = -std::numeric_limits<float>::infinity();
  EXPECT_DOUBLE_EQ(log_sum_exp(std::vector<float>{1, none}), 1);
}

TEST(Logprob, ANanIsNotHidden) {
  EXPECT_TRUE(std::isnan(log_sum_exp(std::vector<float>{1, NAN, 2})));
  EXPECT_TRUE(std::isnan(log_sum_exp(std::vector<float>{NAN, 1})));
}

TEST(Logprob, BestCandidatesAreSortedAndTiesGoToTheSmallerId) {
  const std::vector<float> logits{1, 3, 2, 3};
  const double log_sum = log_sum_exp(logits);
  const auto best = best_candidates(logits, log_sum, 3);
  ASSERT_EQ(best.size(), 3u);
  EXPECT_EQ(best[0].id, 1);
  EXPECT_EQ(best[1].id, 3);
  EXPECT_EQ(best[2].id, 2);
  EXPECT_DOUBLE_EQ(best[0].logprob, 3 - log_sum);
  EXPECT_EQ(best_candidates(logits, log_sum, 10).size(), 4u);
}

}  // namespace
}  // namespace mlx_flash
