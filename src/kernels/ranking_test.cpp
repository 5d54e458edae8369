// SPDX-License-Identifier: MIT
#include "kernels/ranking.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/test_matrix.h"
#include "kernels/vector_ops.h"

namespace mlx_flash::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<uint32_t> sorted(const std::vector<float>& x, size_t most) {
  std::vector<uint32_t> ids;
  for (uint32_t i = 0; i < x.size(); ++i) {
    if (!std::isnan(x[i])) ids.push_back(i);
  }
  std::stable_sort(ids.begin(), ids.end(), [&](uint32_t a, uint32_t b) {
    return x[a] > x[b];
  });
  ids.resize(std::min(ids.size(), most));
  return ids;
}

// In pieces of random lengths, in a random order.
std::vector<uint32_t> ranked(const std::vector<float>& x,
                             size_t most,
                             Random& random) {
  std::vector<std::pair<size_t, size_t>> pieces;
  for (size_t at = 0; at < x.size();) {
    const size_t n = std::min(x.size() - at, 1 + random() % 150);
    pieces.emplace_back(at, n);
    at += n;
  }
  std::shuffle(pieces.begin(), pieces.end(), random);
  std::vector<Ranked> best(most);
  size_t count = 0;
  for (const auto& [at, n] : pieces) {
    count = rank(
        x.data() + at, n, static_cast<uint32_t>(at), most, best.data(), count);
  }
  std::vector<uint32_t> ids;
  for (size_t i = 0; i < count; ++i) ids.push_back(best[i].id);
  return ids;
}

// Many equals, zeros of both signs, infinities, NaN.
std::vector<float> logits(size_t n, Random& random) {
  std::vector<float> x(n);
  const bool few = random() % 2 == 0;
  for (float& v : x) {
    v = few ? static_cast<float>(random() % 5) - 2
            : static_cast<float>(random() % 100000) / 777;
    if (random() % 9 == 0) v = -0.0f;
    if (random() % 9 == 0) v = kNan;
    if (random() % 9 == 0) v = random() % 4 == 0 ? kInf : -kInf;
  }
  return x;
}

TEST(Ranking, PiecesInAnyOrderGiveTheStableSort) {
  for (const int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    SCOPED_TRACE(target_label(target));
    Random random(1);
    for (const size_t n : {1, 3, 16, 63, 64, 65, 700, 3000}) {
      for (const size_t most : {1, 2, 40, 64}) {
        for (int repeat = 0; repeat < 10; ++repeat) {
          const auto x = logits(n, random);
          ASSERT_EQ(ranked(x, most, random), sorted(x, most))
              << n << " " << most;
          const auto first = ranked(x, 1, random);
          ASSERT_EQ(first.empty() ? 0 : first[0], argmax(x.data(), n));
        }
      }
    }
    EXPECT_TRUE(ranked(std::vector<float>(100, kNan), 3, random).empty());
  }
}

}  // namespace
}  // namespace mlx_flash::kernels
