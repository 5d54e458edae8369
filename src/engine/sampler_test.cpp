// SPDX-License-Identifier: MIT
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace mlx_flash {
namespace {

using kernels::Ranked;

// Few different values, so that ties are common; some NaN.
std::vector<float> logits(size_t n, std::mt19937& random) {
  std::vector<float> x(n);
  for (float& v : x) {
    v = static_cast<float>(random() % 60) / 4;
    if (random() % 20 == 0) v = std::numeric_limits<float>::quiet_NaN();
  }
  return x;
}

// All of them in order, by plain selection.
std::vector<Ranked> in_order(const std::vector<float>& x) {
  std::vector<Ranked> all;
  for (uint32_t i = 0; i < x.size(); ++i) {
    if (!std::isnan(x[i])) all.push_back({x[i], i});
  }
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = i + 1; j < all.size(); ++j) {
      if (all[j].value > all[i].value ||
          (all[j].value == all[i].value && all[j].id < all[i].id)) {
        std::swap(all[i], all[j]);
      }
    }
  }
  return all;
}

std::vector<SamplingOptions> all_options() {
  std::vector<SamplingOptions> all;
  for (const float temperature : {0.0f, 0.7f, 3.0f}) {
    for (const int top_k : {0, 1, 40, 64, 65}) {
      for (const float top_p : {1.0f, 0.8f}) {
        for (const float min_p : {0.0f, 0.1f}) {
          all.push_back({.temperature = temperature,
                         .top_p = top_p,
                         .top_k = top_k,
                         .min_p = min_p,
                         .seed = 7});
        }
      }
    }
  }
  return all;
}

TEST(Sampler, RankedLogitsGiveTheSameTokens) {
  std::mt19937 random(3);
  size_t used = 0;
  for (const SamplingOptions& options : all_options()) {
    Sampler with(options);
    Sampler without(options);
    for (int i = 0; i < 30; ++i) {
      const auto x = logits(300, random);
      auto best = in_order(x);
      best.resize(std::min(best.size(), with.ranked()));
      used += best.size();
      ASSERT_EQ(with.sample(x, {}, best), without.sample(x, {}))
          << options.temperature << " " << options.top_k << " " << options.top_p
          << " " << options.min_p;
    }
  }
  EXPECT_GT(used, 0u);
}

// The token where the uniform draw lies, all of them being sorted. As a sampler
// of the same seed draws: top_k 0 and no other limit.
int32_t drawn_by_hand(const std::vector<float>& x, double temperature) {
  const std::vector<Ranked> all = in_order(x);
  const double best = all.front().value;
  double weight = 0;
  for (const float v : x) {
    if (!std::isnan(v)) weight += std::exp((v - best) / temperature);
  }
  uint64_t z = 7 + 0x9e3779b97f4a7c15;  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  z ^= z >> 31;
  double target = static_cast<double>(z >> 11) * 0x1.0p-53 * weight;
  for (const Ranked& one : all) {
    target -= std::exp((one.value - best) / temperature);
    if (target < 0) return static_cast<int32_t>(one.id);
  }
  return static_cast<int32_t>(all.back().id);
}

// The candidates are sorted piece by piece, as far as the draw lies.
TEST(Sampler, ADrawFarDownIsTheOneOfAllSorted) {
  std::mt19937 random(5);
  size_t far = 0;
  for (int repeat = 0; repeat < 20; ++repeat) {
    const std::vector<float> x = logits(3000, random);
    for (const float temperature : {0.05f, 1.0f, 50.0f}) {
      Sampler sampler({.temperature = temperature, .seed = 7});
      const int32_t token = sampler.sample(x, {});
      ASSERT_EQ(token, drawn_by_hand(x, static_cast<double>(temperature)));
      size_t better = 0;
      for (const float v : x) better += v > x[static_cast<size_t>(token)];
      far += better > 64;
    }
  }
  EXPECT_GT(far, 10u);
}

TEST(Sampler, PenaltiesNeedAllLogits) {
  const std::vector<float> x = {1, 4, 3.9f, 2};
  const std::vector<int32_t> history = {1};
  Sampler sampler({.repeat_penalty = 2});
  EXPECT_EQ(sampler.ranked(), 0u);
  const std::vector<Ranked> best = {{4, 1}};
  EXPECT_EQ(sampler.sample(x, history, best), 2);
}

// The candidates that top-k leaves, ties by id, and in the long run their
// probabilities.
TEST(Sampler, TopKDrawsFromTheFirstOfEquals) {
  const std::vector<float> x = {0, 2, 1, 2, 1, 1};
  Sampler sampler({.temperature = 1, .top_k = 3, .seed = 1});
  int counts[6] = {};
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.sample(x, {})];
  EXPECT_EQ(counts[0] + counts[4] + counts[5], 0);
  const double e = std::exp(1.0);
  EXPECT_NEAR(counts[1] / double{kDraws}, e / (2 * e + 1), 0.02);
  EXPECT_NEAR(counts[3] / double{kDraws}, e / (2 * e + 1), 0.02);
  EXPECT_NEAR(counts[2] / double{kDraws}, 1 / (2 * e + 1), 0.02);
}

TEST(Sampler, NothingButNanGivesToken0) {
  const std::vector<float> x(10, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(Sampler({}).sample(x, {}), 0);
  EXPECT_EQ(Sampler({.temperature = 1, .top_k = 5}).sample(x, {}), 0);
}

}  // namespace
}  // namespace mlx_flash
