// SPDX-License-Identifier: MIT
#include "nn/routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace mlx_flash::nn {
namespace {

using ::testing::ElementsAre;

struct Choice {
  std::vector<uint32_t> experts;
  std::vector<float> weights;
};

Choice choose(Routing routing,
              const std::vector<float>& logits,
              std::span<const float> correction = {}) {
  routing.experts = static_cast<uint32_t>(logits.size());
  RoutingScratch scratch;
  Choice out{std::vector<uint32_t>(routing.top_k),
             std::vector<float>(routing.top_k)};
  choose_experts(routing,
                 logits.data(),
                 correction,
                 scratch,
                 out.experts.data(),
                 out.weights.data());
  return out;
}

double sum_of_exp(const std::vector<float>& logits) {
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  return sum;
}

TEST(Routing, SoftmaxWeighsOverAllExperts) {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 1.5f};
  const Choice got = choose({.top_k = 2}, logits);
  EXPECT_THAT(got.experts, ElementsAre(1u, 3u));
  EXPECT_NEAR(got.weights[0], std::exp(2.0) / sum_of_exp(logits), 1e-6);
  EXPECT_NEAR(got.weights[1], std::exp(1.5) / sum_of_exp(logits), 1e-6);
}

TEST(Routing, NormalisedWeightsAddUpToTheScale) {
  const Choice got = choose({.top_k = 3, .normalise = true, .scale = 2.5f},
                            {0.5f, 2.0f, -1.0f, 1.5f, 0.0f});
  EXPECT_NEAR(got.weights[0] + got.weights[1] + got.weights[2], 2.5, 1e-6);
  EXPECT_GT(got.weights[0], got.weights[1]);
}

TEST(Routing, SoftmaxOfTheChosenIgnoresTheOthers) {
  const Choice got = choose({.top_k = 2, .scoring = Scoring::kSoftmaxOfChosen},
                            {7.0f, 9.0f, -100.0f, 8.5f});
  EXPECT_THAT(got.experts, ElementsAre(1u, 3u));
  EXPECT_NEAR(got.weights[0], 1 / (1 + std::exp(-0.5)), 1e-6);
  EXPECT_NEAR(got.weights[0] + got.weights[1], 1, 1e-6);
}

TEST(Routing, OfEqualScoresTheFirstWins) {
  const Choice got = choose({.top_k = 3}, {1.0f, 2.0f, 1.0f, 2.0f, 1.0f});
  EXPECT_THAT(got.experts, ElementsAre(1u, 3u, 0u));
}

TEST(Routing, CorrectionChoosesButDoesNotWeigh) {
  const std::vector<float> correction = {0.0f, 0.0f, 5.0f, 0.0f};
  const Choice got = choose({.top_k = 2, .scoring = Scoring::kSigmoid},
                            {1.0f, 3.0f, -2.0f, 2.0f},
                            correction);
  EXPECT_THAT(got.experts, ElementsAre(2u, 1u));
  EXPECT_NEAR(got.weights[0], 1 / (1 + std::exp(2.0)), 1e-6);
  EXPECT_NEAR(got.weights[1], 1 / (1 + std::exp(-3.0)), 1e-6);
}

TEST(Routing, OnlyTheBestGroupsAreUsed) {
  Routing routing = {.top_k = 2,
                     .scoring = Scoring::kSigmoid,
                     .groups = 2,
                     .groups_kept = 1,
                     .group_score = GroupScore::kTwoBest};
  // The best expert is in the first group, the best pair in the second.
  const std::vector<float> logits = {4.0f, -3.0f, -3.0f, 2.0f, 1.0f, 1.5f};
  const std::vector<float> none(6, 0.0f);
  EXPECT_THAT(choose(routing, logits, none).experts, ElementsAre(3u, 5u));
  routing.group_score = GroupScore::kBest;
  EXPECT_EQ(choose(routing, logits, none).experts[0], 0u);
}

// mlx-lm sets dropped groups to 0, not to minus infinity.
TEST(Routing, ADroppedExpertWinsAgainstANegativeScore) {
  const std::vector<float> correction = {-2.0f, -2.5f, -3.0f, -3.0f};
  const Choice got = choose(
      {.top_k = 1, .scoring = Scoring::kSigmoid, .groups = 2, .groups_kept = 1},
      {0.0f, 0.0f, 0.0f, 1.0f},
      correction);
  EXPECT_THAT(got.experts, ElementsAre(2u));
  EXPECT_NEAR(got.weights[0], 0.5, 1e-6);
}

TEST(Routing, NanNeverWinsAndNeverRepeats) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Choice some = choose({.top_k = 2, .scoring = Scoring::kSigmoid},
                             {nan, 1.0f, nan, 2.0f});
  EXPECT_THAT(some.experts, ElementsAre(3u, 1u));
  const Choice all = choose({.top_k = 3}, {nan, nan, nan, nan});
  EXPECT_THAT(all.experts, ElementsAre(0u, 1u, 2u));
}

TEST(ExpertRows, SortsRowsByExpertAndFindsThemAgain) {
  const std::vector<uint32_t> chosen = {4, 1, 1, 0, 4, 1};  // three rows of two
  ExpertRows rows;
  rows.group(chosen, 2, 6);
  EXPECT_THAT(rows.experts, ElementsAre(0u, 1u, 4u));
  EXPECT_THAT(rows.counts, ElementsAre(1u, 3u, 2u));
  EXPECT_THAT(rows.offsets, ElementsAre(0u, 1u, 4u));
  EXPECT_THAT(rows.rows, ElementsAre(1u, 0u, 1u, 2u, 0u, 2u));
  for (uint32_t i = 0; i < chosen.size(); ++i) {
    const uint32_t place = rows.places[i];
    EXPECT_EQ(rows.rows[place], i / 2);
    for (size_t e = 0; e < rows.experts.size(); ++e) {
      const bool inside =
          place >= rows.offsets[e] && place < rows.offsets[e] + rows.counts[e];
      EXPECT_EQ(inside, rows.experts[e] == chosen[i]);
    }
  }
}

}  // namespace
}  // namespace mlx_flash::nn
