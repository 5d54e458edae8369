// SPDX-License-Identifier: MIT
#include "kernels/vector_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference.h"
#include "kernels/test_matrix.h"

namespace mlx_flash::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Sizes around every vector width.
constexpr size_t kSizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 576};

template <class Fn>
void for_each_target(const Fn& fn) {
  ASSERT_TRUE(supported());
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    ASSERT_EQ(target_label(target), target_name());
    SCOPED_TRACE(target_label(target));
    fn();
  }
}

void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(same_bits(a[i], b[i]))
        << "at " << i << " of " << a.size() << ": " << a[i] << ", " << b[i];
  }
}

// Gates that reach every branch: large, tiny, infinite, NaN.
std::vector<float> gates(size_t n, Random& random) {
  constexpr float kSpecial[] = {0.0f,
                                -0.0f,
                                kInf,
                                -kInf,
                                kNan,
                                1e30f,
                                -1e30f,
                                88.8f,
                                -88.8f,
                                -103.9f,
                                -104.1f,
                                1e-40f};
  auto x = random_floats(n, random);
  for (float& value : x) {
    value *= random() % 2 == 0 ? 5.0f : 110.0f;
    if (random() % 8 == 0) value = kSpecial[random() % std::size(kSpecial)];
  }
  return x;
}

TEST(VectorOps, RmsNormEqualsTheReference) {
  for_each_target([] {
    Random random(1);
    for (size_t n : kSizes) {
      const auto x = random_floats(n, random, true);
      const auto w = random_floats(n, random);
      for (const float* weight :
           {w.data(), static_cast<const float*>(nullptr)}) {
        std::vector<float> expected(n);
        auto y = x;
        reference::rms_norm(x.data(), weight, 1e-5f, n, expected.data());
        rms_norm(y.data(), weight, 1e-5f, n, y.data());  // in place
        expect_same(y, expected);
      }
    }
  });
}

// Stated bounds against float64: sums in float32 by sixteen accumulators, and a
// few roundings.
TEST(VectorOps, RmsNormAndRopeAreWithinTheirBounds) {
  for_each_target([] {
    Random random(6);
    for (size_t n : std::initializer_list<size_t>{16, 576, 4096}) {
      const auto x = random_floats(n, random);
      const auto w = random_floats(n, random);
      std::vector<float> y(n);
      rms_norm(x.data(), w.data(), 1e-5f, n, y.data());
      double squares = 0;
      for (float v : x) squares += double{v} * double{v};
      const double factor =
          1 / std::sqrt(squares / static_cast<double>(n) + double{1e-5f});
      // Half of the sum's relative error, and four roundings.
      const double relative = (static_cast<double>(n) / 32 + 8) * 0x1p-24;
      for (size_t i = 0; i < n; ++i) {
        const double exact = double{x[i]} * factor * double{w[i]};
        ASSERT_LE(std::fabs(double{y[i]} - exact), std::fabs(exact) * relative)
            << n << " at " << i;
      }
      auto turned = x;
      rope(turned.data(), w.data(), 16, false);
      for (size_t i = 0; i < 8; ++i) {
        const double ac = double{x[i]} * double{w[i]};
        const double bs = double{x[i + 8]} * double{w[i + 8]};
        // Two products and their difference, each rounded.
        const double bound = (std::fabs(ac) + std::fabs(bs)) * 0x1p-23;
        ASSERT_LE(std::fabs(double{turned[i]} - (ac - bs)), bound);
      }
    }
  });
}

TEST(VectorOps, DenormalsAreNotFlushed) {
  for_each_target([] {
    constexpr float kTiny = 1e-41f;
    const std::vector<float> a(19, kTiny);
    std::vector<float> y(19);
    add(a.data(), a.data(), 19, y.data());
    for (float v : y) ASSERT_EQ(v, 2 * kTiny);
    const std::vector<float> up(19, 1e-5f);
    std::vector<float> gate(19, 1e-36f);  // silu(g) is about g / 2
    silu_mul(gate.data(), up.data(), 19, y.data());
    for (float v : y) ASSERT_GT(v, 0.0f);
  });
}

TEST(VectorOps, RmsNormOfOnesIsOne) {
  const std::vector<float> x(24, 3.0f);
  std::vector<float> y(24);
  rms_norm(x.data(), nullptr, 0.0f, 24, y.data());
  for (float v : y) EXPECT_FLOAT_EQ(v, 1.0f);
}

TEST(VectorOps, AddEqualsScalarAddition) {
  for_each_target([] {
    Random random(2);
    for (size_t n : kSizes) {
      const auto a = random_floats(n, random, true);
      auto b = random_floats(n, random);
      std::vector<float> expected(n);
      for (size_t i = 0; i < n; ++i) expected[i] = a[i] + b[i];
      add(a.data(), b.data(), n, b.data());
      expect_same(b, expected);
    }
  });
}

TEST(VectorOps, ClippedSwigluEqualsTheReference) {
  constexpr float kAlpha = 1.702f;
  constexpr float kLimit = 7.0f;
  for_each_target([] {
    Random random(8);
    for (size_t n : kSizes) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const auto gate = gates(n, random);
        const auto up = gates(n, random);
        std::vector<float> expected(n), y(n);
        for (size_t i = 0; i < n; ++i) {
          const float g = gate[i] > kLimit ? kLimit : gate[i];
          float u = up[i] > kLimit ? kLimit : up[i];
          u = u < -kLimit ? -kLimit : u;
          expected[i] = (u + 1.0f) * (g / (1.0f + reference::exp(-kAlpha * g)));
        }
        swiglu_clipped(gate.data(), up.data(), kAlpha, kLimit, n, y.data());
        expect_same(y, expected);
      }
    }
  });
}

TEST(VectorOps, AddScaledRoundsOnce) {
  for_each_target([] {
    Random random(9);
    for (size_t n : kSizes) {
      const auto x = random_floats(n, random, true);
      auto sum = random_floats(n, random);
      const float w = random_floats(1, random)[0];
      std::vector<float> expected(n);
      for (size_t i = 0; i < n; ++i) expected[i] = std::fma(w, x[i], sum[i]);
      add_scaled(x.data(), w, n, sum.data());
      expect_same(sum, expected);
    }
  });
}

TEST(VectorOps, SoftmaxAndSigmoidEqualTheReference) {
  for_each_target([] {
    Random random(10);
    for (size_t n : kSizes) {
      auto x = random_floats(n, random);
      for (float& value : x) value *= 9;
      const float top = *std::max_element(x.begin(), x.end());
      float acc[16] = {};
      std::vector<float> e(n), odds(n);
      for (size_t i = 0; i < n; ++i) {
        e[i] = reference::exp(x[i] - top);
        acc[i % 16] += e[i];
        odds[i] = 1.0f / (1.0f + reference::exp(-x[i]));
      }
      for (size_t half = 8; half >= 1; half /= 2) {
        for (size_t i = 0; i < half; ++i) acc[i] += acc[i + half];
      }
      for (float& value : e) value /= acc[0];
      auto y = x;
      softmax(y.data(), n);
      expect_same(y, e);
      sigmoid(x.data(), n);
      expect_same(x, odds);
    }
  });
}

TEST(VectorOps, GatedActivationsEqualTheReference) {
  for_each_target([] {
    Random random(3);
    for (size_t n : kSizes) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        const auto gate = gates(n, random);
        const auto up = random_floats(n, random);
        std::vector<float> silu(n), gelu(n), y(n);
        for (size_t i = 0; i < n; ++i) {
          silu[i] = reference::silu(gate[i]) * up[i];
          gelu[i] = reference::gelu_tanh(gate[i]) * up[i];
        }
        silu_mul(gate.data(), up.data(), n, y.data());
        expect_same(y, silu);
        y = gate;
        gelu_tanh_mul(y.data(), up.data(), n, y.data());
        expect_same(y, gelu);
      }
    }
  });
}

// How far `value` is from the exact one, in units of its last place.
double ulps(float value, double exact) {
  const auto rounded = static_cast<float>(exact);
  const double unit = std::nextafter(std::fabs(rounded), kInf) -
                      static_cast<double>(std::fabs(rounded));
  return std::fabs(static_cast<double>(value) - exact) / unit;
}

TEST(VectorOps, ExpIsWithinAnUlpAndAHalf) {
  double worst = 0;
  for (double x = -104; x < 88.7; x += 0.000917) {
    const auto xf = static_cast<float>(x);
    worst = std::max(
        worst, ulps(reference::exp(xf), std::exp(static_cast<double>(xf))));
  }
  EXPECT_LT(worst, 1.5);
  RecordProperty("worst_ulps", std::to_string(worst));
  EXPECT_EQ(reference::exp(0.0f), 1.0f);
  EXPECT_EQ(reference::exp(kInf), kInf);
  EXPECT_EQ(reference::exp(89.0f), kInf);
  EXPECT_EQ(reference::exp(1e30f), kInf);
  EXPECT_EQ(reference::exp(-kInf), 0.0f);
  EXPECT_EQ(reference::exp(-1e30f), 0.0f);
  EXPECT_TRUE(std::isnan(reference::exp(kNan)));
}

TEST(VectorOps, ActivationsAreAccurate) {
  for (double g = -20; g < 20; g += 0.0137) {
    const auto gate = static_cast<float>(g);
    const auto z = static_cast<double>(gate);
    const float one = 1.0f;
    float silu = 0;
    float gelu = 0;
    silu_mul(&gate, &one, 1, &silu);
    gelu_tanh_mul(&gate, &one, 1, &gelu);
    EXPECT_LT(ulps(silu, z / (1 + std::exp(-z))), 4) << g;
    const double u = 0.7978845608028654 * (z + 0.044715 * z * z * z);
    const double exact = z / (1 + std::exp(-2 * u));
    if (std::fabs(exact) < 1e-36) {  // the exponential overflows: zero is near
      EXPECT_NEAR(gelu, exact, 1e-36);
    } else {  // the relative error grows with the size of exp's argument
      EXPECT_LT(ulps(gelu, exact), 4 + 4 * std::fabs(u)) << g;
    }
  }
}

TEST(VectorOps, RopeEqualsTheReferenceAndLeavesTheRest) {
  for_each_target([] {
    Random random(4);
    for (size_t dims :
         std::initializer_list<size_t>{2, 4, 6, 10, 16, 18, 32, 34, 64, 128}) {
      for (bool interleaved : {false, true}) {
        auto x = random_floats(dims + 5, random);
        auto expected = x;
        const auto cos_sin = random_floats(dims, random);
        rope(x.data(), cos_sin.data(), dims, interleaved);
        reference::rope(expected.data(), cos_sin.data(), dims, interleaved);
        expect_same(x, expected);
      }
    }
  });
}

// One pass over a head gives the bits of norm, scale and rope in turn.
TEST(VectorOps, TurnHeadEqualsItsStepsOneByOne) {
  const auto check = [](size_t n, HeadTurn turn, Random& random) {
    auto x = random_floats(n, random, random() % 2 == 0);
    if (random() % 8 == 0) x[random() % n] = random() % 2 == 0 ? kInf : kNan;
    auto steps = x;
    if (turn.weight != nullptr) {
      rms_norm(steps.data(), turn.weight, turn.eps, n, steps.data());
    }
    for (size_t i = 0; i < turn.dims; ++i) steps[i] *= turn.scale;
    if (turn.cos_sin != nullptr) {
      reference::rope(steps.data(), turn.cos_sin, turn.dims, turn.interleaved);
    }
    turn_head(turn, n, x.data());
    expect_same(x, steps);
  };
  for_each_target([&] {
    Random random(11);
    for (size_t dims :
         std::initializer_list<size_t>{0, 2, 6, 10, 16, 34, 64, 80, 128}) {
      for (size_t rest : std::initializer_list<size_t>{0, 3, 16, 40}) {
        const size_t n = dims + rest;
        if (n == 0) continue;
        const auto weight = random_floats(n, random);
        const auto cos_sin = random_floats(dims, random);
        for (unsigned kind = 0; kind < 16; ++kind) {
          check(n,
                {.weight = kind & 1 ? weight.data() : nullptr,
                 .eps = 1e-5f,
                 .scale = kind & 2 ? 1.19f : 1.0f,
                 .cos_sin = kind & 4 ? cos_sin.data() : nullptr,
                 .dims = dims,
                 .interleaved = (kind & 8) != 0},
                random);
        }
      }
    }
  });
}

TEST(VectorOps, RopeTurnsAPairByItsAngle) {
  std::vector<float> x = {1.0f, 0.0f, 0.0f, 2.0f};
  const std::vector<float> cos_sin = {0.0f, 1.0f, 1.0f, 0.0f};
  rope(x.data(), cos_sin.data(), 4, false);  // pairs (0, 2) and (1, 3)
  EXPECT_EQ(x, (std::vector<float>{0.0f, 0.0f, 1.0f, 2.0f}));
  x = {1.0f, 0.0f, 3.0f, 2.0f};
  rope(x.data(), cos_sin.data(), 4, true);  // pairs (0, 1) and (2, 3)
  EXPECT_EQ(x, (std::vector<float>{0.0f, 1.0f, 3.0f, 2.0f}));
}

TEST(VectorOps, ArgmaxFindsTheFirstLargest) {
  for_each_target([] {
    Random random(5);
    for (size_t n : kSizes) {
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::vector<float> x(n);
        for (float& v : x) {  // many equals, some specials
          v = static_cast<float>(random() % 4);
          if (random() % 6 == 0) v = kNan;
          if (random() % 6 == 0) v = -kInf;
        }
        ASSERT_EQ(argmax(x.data(), n), reference::argmax(x.data(), n));
      }
      const std::vector<float> nans(n, kNan);
      EXPECT_EQ(argmax(nans.data(), n), 0u);
      std::vector<float> low(n, -kInf);
      low[0] = kNan;
      EXPECT_EQ(argmax(low.data(), n), n > 1 ? 1u : 0u);
    }
    const float zeros[] = {-1.0f, -0.0f, 0.0f};
    EXPECT_EQ(argmax(zeros, 3), 1u);
  });
}

}  // namespace
}  // namespace mlx_flash::kernels
