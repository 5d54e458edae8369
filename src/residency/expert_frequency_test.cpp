// SPDX-License-Identifier: MIT
#include "residency/expert_frequency.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace mlx_flash {
namespace {

const std::vector<ExpertFrequency::Layer> kLayers = {{8, 2}, {8, 2}};

void use(ExpertFrequency& frequency,
         uint32_t layer,
         std::vector<uint32_t> experts,
         uint32_t rows = 1) {
  const std::vector<uint32_t> each(experts.size(), rows);
  frequency.use(layer, experts, each);
}

TEST(ExpertFrequency, AScoreIsAChanceOfUse) {
  ExpertFrequency frequency(kLayers);
  for (uint32_t t = 0; t < 600; ++t) use(frequency, 0, {0, 1 + t % 4});
  EXPECT_NEAR(frequency.scores(0)[0], 1, 0.05);
  for (uint32_t e = 1; e <= 4; ++e) {
    EXPECT_NEAR(frequency.scores(0)[e], 0.25, 0.1);
  }
  for (uint32_t e = 5; e < 8; ++e) EXPECT_EQ(frequency.scores(0)[e], 0);
  // The other layer has not been heard of.
  for (uint32_t e = 0; e < 8; ++e) EXPECT_EQ(frequency.scores(1)[e], 0);
}

TEST(ExpertFrequency, APromptCountsByItsRows) {
  ExpertFrequency frequency(kLayers);
  std::vector<uint32_t> all(8);
  std::iota(all.begin(), all.end(), 0u);
  const std::vector<uint32_t> rows = {90, 40, 30, 20, 10, 5, 3, 2};
  const auto before = frequency.weights();
  for (int i = 0; i < 40; ++i) frequency.use(0, all, rows);
  for (uint32_t e = 0; e < 8; ++e) {
    EXPECT_NEAR(frequency.scores(0)[e], rows[e] / 100.0, 0.01);
  }
  // Which says nothing of what one token tells about the next.
  EXPECT_EQ(frequency.weights(), before);
}

TEST(ExpertFrequency, HabitsShowInTheWeights) {
  ExpertFrequency steady(kLayers);
  ExpertFrequency restless(kLayers);
  uint64_t random = 1;
  const auto draw = [&](uint32_t n) {
    random = random * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(random >> 33) % n;
  };
  for (uint32_t t = 0; t < 2000; ++t) {
    for (uint32_t l = 0; l < 2; ++l) {
      // Drawn anew each time, from few; and the same for six tokens.
      const uint32_t often = draw(3);
      use(steady, l, {often, 3 + draw(5)});
      const uint32_t lasting = (t / 6 * 5 + l) % 8;
      use(restless, l, {lasting, (lasting + 1) % 8});
    }
  }
  EXPECT_GT(steady.weights()[2] + steady.weights()[3],
            steady.weights()[0] + steady.weights()[1]);
  // So small a model moves the prior slowly, but the right way.
  EXPECT_GT(restless.weights()[0], steady.weights()[0] + 0.2);
}

TEST(ExpertFrequency, NumbersThatCannotBeAreNotTakenUp) {
  ExpertFrequency frequency(kLayers);
  for (uint32_t t = 0; t < 20; ++t) use(frequency, 0, {t % 8, (t + 1) % 8});
  const ExpertFrequency::State good = frequency.state();
  const std::vector<float> scores(frequency.scores(0).begin(),
                                  frequency.scores(0).end());
  for (const float bad :
       {-1.0f, 1.5f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    ExpertFrequency::State state = good;
    state.counts[3][1] = bad;
    EXPECT_FALSE(frequency.restore(state)) << bad;
  }
  ExpertFrequency::State state = good;
  state.weights[0] = -1;
  EXPECT_FALSE(frequency.restore(state));
  state = good;
  state.tokens = std::nan("");
  EXPECT_FALSE(frequency.restore(state));
  state = good;
  state.counts.pop_back();
  EXPECT_FALSE(frequency.restore(state));
  EXPECT_EQ(std::vector<float>(frequency.scores(0).begin(),
                               frequency.scores(0).end()),
            scores);
  EXPECT_TRUE(frequency.restore(good));
}

}  // namespace
}  // namespace mlx_flash
