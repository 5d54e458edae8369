// SPDX-License-Identifier: MIT

// What the expert cache reaches on routings, real and made up, beside what
// others would.

#include "residency/testing/router_trace.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>

namespace mlx_flash::testing {
namespace {

RouterTrace open_trace(const std::string& name,
                       uint32_t layers,
                       uint32_t active,
                       uint32_t experts) {
  auto trace = RouterTrace::open(
      std::string(FLASH_TESTDATA) + "/traces/" + name, layers, active, experts);
  EXPECT_TRUE(trace.ok()) << trace.status().message();
  return std::move(trace).value();
}

// One layer; `weight(token, expert)` says how likely a choice is.
template <typename Weight>
RouterTrace draw_trace(uint32_t tokens,
                       uint32_t active,
                       uint32_t experts,
                       const Weight& weight) {
  std::mt19937_64 random(7);
  const std::string path = "trace-" + std::to_string(::getpid());
  std::ofstream out(path, std::ios::binary);
  for (uint32_t t = 0; t < tokens; ++t) {
    std::vector<double> weights;
    for (uint32_t e = 0; e < experts; ++e) weights.push_back(weight(t, e));
    for (uint32_t i = 0; i < active; ++i) {
      const int e = std::discrete_distribution<int>(weights.begin(),
                                                    weights.end())(random);
      weights[static_cast<size_t>(e)] = 0;
      out.put(static_cast<char>(e));
    }
  }
  out.close();
  auto trace = RouterTrace::open(path, 1, active, experts);
  std::remove(path.c_str());
  return std::move(trace).value();
}

TEST(ExpertHitRate, OfASmallTrainedModel) {
  const RouterTrace trace = open_trace("tinymoe.u8", 6, 4, 32);
  ASSERT_EQ(trace.tokens(), 1000u);
  struct Row {
    uint32_t capacity;
    double least;
  };
  for (const Row row : {Row{19, 0.22},
                        Row{29, 0.31},
                        Row{38, 0.395},
                        Row{48, 0.47},
                        Row{67, 0.59},
                        Row{96, 0.745}}) {
    const double rate = cache_hit_rate(trace, row.capacity, 0);
    EXPECT_GE(rate, row.least) << row.capacity;
    EXPECT_GT(rate, lru_hit_rate(trace, row.capacity, 0)) << row.capacity;
    EXPECT_LT(rate, belady_hit_rate(trace, row.capacity, 0)) << row.capacity;
  }
  EXPECT_GT(cache_hit_rate(trace, trace.slabs(), 0), 0.99);
}

TEST(ExpertHitRate, ByRecencyIsThatOfAnLru) {
  const RouterTrace trace = open_trace("tinymoe.u8", 6, 4, 32);
  for (const uint32_t capacity : {29u, 48u, 96u}) {
    const double rate =
        cache_hit_rate(trace, capacity, 0, ExpertPolicy::kRecency);
    EXPECT_NEAR(rate, lru_hit_rate(trace, capacity, 0), 0.03) << capacity;
    EXPECT_GT(cache_hit_rate(trace, capacity, 0), rate) << capacity;
  }
}

TEST(ExpertHitRate, OfAModelOfManyExperts) {
  const RouterTrace trace = open_trace("skewed-48x128.u8", 48, 8, 128);
  for (const uint32_t capacity : {384u, 829u, 2765u}) {
    double best = lru_hit_rate(trace, capacity, 80);
    for (const double half_life : {20.0, 50.0, 200.0}) {
      best = std::max(best, lfu_hit_rate(trace, capacity, 80, half_life));
    }
    EXPECT_GE(cache_hit_rate(trace, capacity, 80), best) << capacity;
  }
}

TEST(ExpertHitRate, DoesNotCollapseBelowOneTokensExperts) {
  const RouterTrace trace = open_trace("tinymoe.u8", 6, 4, 32);
  EXPECT_LT(lru_hit_rate(trace, 12, 0), 0.01);
  EXPECT_GT(cache_hit_rate(trace, 12, 0), 0.12);
}

// Whether habits are long or short the cache does about as well as the best
// half-life, which differs: no one of them would do for both.
TEST(ExpertHitRate, TheHalfLifeTunesItself) {
  const RouterTrace steady = draw_trace(
      3000, 4, 64, [](uint32_t, uint32_t e) { return 1.0 / (1 + e); });
  const RouterTrace restless =
      draw_trace(3000, 4, 64, [](uint32_t t, uint32_t e) {
        return 1.0 / (1 + (e + 64 - t / 12 * 17 % 64) % 64);
      });
  const uint32_t capacity = 16;
  const double steady_long = lfu_hit_rate(steady, capacity, 500, 800);
  const double steady_short = lfu_hit_rate(steady, capacity, 500, 4);
  const double restless_long = lfu_hit_rate(restless, capacity, 500, 800);
  const double restless_short = lfu_hit_rate(restless, capacity, 500, 4);
  ASSERT_GT(steady_long, steady_short + 0.02);
  ASSERT_GT(restless_short, restless_long + 0.1);
  EXPECT_GT(cache_hit_rate(steady, capacity, 500), 0.98 * steady_long);
  EXPECT_GT(cache_hit_rate(restless, capacity, 500), 0.95 * restless_short);
}

TEST(RouterTrace, RefusesWhatIsNotWholeTokens) {
  const std::string path = std::string(FLASH_TESTDATA) + "/traces/tinymoe.u8";
  EXPECT_FALSE(RouterTrace::open(path, 7, 4, 32).ok());
  EXPECT_FALSE(RouterTrace::open(path, 6, 4, 31).ok());
  EXPECT_FALSE(RouterTrace::open(path + ".none", 6, 4, 32).ok());
}

}  // namespace
}  // namespace mlx_flash::testing
