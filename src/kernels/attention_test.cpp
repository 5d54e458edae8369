// SPDX-License-Identifier: MIT
#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/reference.h"
#include "kernels/test_matrix.h"
#include "kernels/vector_ops.h"

namespace mlx_flash::kernels {
namespace {

// A cache of random keys and values.
struct Cache {
  Cache(const AttentionShape& shape, size_t positions, Random& random) {
    for (size_t b = 0; b * kKvBlock < positions; ++b) {
      keys.push_back(fill(shape, shape.head_dim, random));
      values.push_back(fill(shape, shape.value_dim, random));
    }
    for (size_t b = 0; b < keys.size(); ++b) {
      blocks.push_back(
          {keys[b].data(), shape.values_in_keys ? nullptr : values[b].data()});
    }
  }

  static std::vector<std::byte> fill(const AttentionShape& shape,
                                     size_t dim,
                                     Random& random) {
    const size_t n = kKvBlock * shape.kv_heads * dim;
    const auto x = random_floats(n, random);
    std::vector<std::byte> out(n * dtype_bytes(shape.kv_dtype));
    store_kv(x.data(), n, shape.kv_dtype, out.data());
    return out;
  }

  std::vector<std::vector<std::byte>> keys;
  std::vector<std::vector<std::byte>> values;
  std::vector<KvBlock> blocks;
};

struct Case {
  AttentionShape shape;
  size_t first_key;
  size_t position;
  bool sinks;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    all.push_back({{4, 4, 64, 64, 0.125f, dtype}, 0, 0, false});
    all.push_back({{4, 2, 64, 64, 0.125f, dtype}, 0, 63, false});
    all.push_back({{9, 3, 64, 64, 0.125f, dtype}, 0, 64, true});
    all.push_back({{8, 1, 48, 80, 0.3f, dtype}, 0, 200, false});
    all.push_back({{2, 1, 37, 19, 0.2f, dtype}, 70, 200, true});
    all.push_back({{2, 2, 1, 1, 1.0f, dtype}, 130, 130, false});
    all.push_back({{2, 2, 100, 128, 0.1f, dtype}, 63, 64, false});
    all.push_back({{5, 5, 256, 512, 0.06f, dtype}, 5, 150, true});
    all.push_back({{4, 2, 64, 64, 0.125f, dtype, 50.0f}, 0, 100, false});
    all.push_back({{3, 1, 37, 19, 0.4f, dtype, 2.0f}, 70, 200, true});
    all.push_back({{3, 1, 37, 21, 0.4f, dtype, 0, true}, 0, 200, false});
    all.push_back({{16, 1, 576, 512, 0.1f, dtype, 0, true}, 3, 130, false});
    all.push_back({{4, 2, 48, 40, 0.1f, dtype, 0, true}, 0, 70, true});
  }
  return all;
}

TEST(Attend, EqualsTheReferenceForEveryTarget) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    ASSERT_EQ(target_label(target), target_name());
    Random random(21);
    for (const Case& c : cases()) {
      const Cache cache(c.shape, c.position + 1, random);
      auto q = random_floats(c.shape.heads * c.shape.head_dim, random);
      for (float& v : q) v *= 4;
      const auto logits = random_floats(c.shape.heads, random);
      const float* sinks = c.sinks ? logits.data() : nullptr;
      const size_t heads = c.shape.heads;
      std::vector<float> out(heads * c.shape.value_dim, 99.0f);
      std::vector<float> expected(out.size());
      // Two ranges of heads, as two threads would take them.
      attend(c.shape,
             q.data(),
             cache.blocks,
             c.first_key,
             c.position,
             sinks,
             0,
             heads / 2,
             out.data());
      attend(c.shape,
             q.data(),
             cache.blocks,
             c.first_key,
             c.position,
             sinks,
             heads / 2,
             heads,
             out.data());
      reference::attend(c.shape,
                        q.data(),
                        cache.blocks,
                        c.first_key,
                        c.position,
                        sinks,
                        0,
                        heads,
                        expected.data());
      for (size_t i = 0; i < out.size(); ++i) {
        ASSERT_TRUE(same_bits(out[i], expected[i]))
            << target_label(target) << " " << dtype_name(c.shape.kv_dtype)
            << " head_dim " << c.shape.head_dim << " position " << c.position
            << " at " << i;
      }
    }
  }
}

TEST(Attend, AgreesWithSoftmaxInDoublePrecision) {
  Random random(22);
  for (const Case& c : cases()) {
    const AttentionShape& s = c.shape;
    if (s.kv_dtype != DType::kF32) continue;
    const Cache cache(s, c.position + 1, random);
    const auto q = random_floats(s.heads * s.head_dim, random);
    const auto logits = random_floats(s.heads, random);
    std::vector<float> out(s.heads * s.value_dim);
    attend(s,
           q.data(),
           cache.blocks,
           c.first_key,
           c.position,
           c.sinks ? logits.data() : nullptr,
           0,
           s.heads,
           out.data());
    for (size_t h = 0; h < s.heads; ++h) {
      const size_t kv = h / (s.heads / s.kv_heads);
      double sum = c.sinks ? std::exp(static_cast<double>(logits[h])) : 0.0;
      std::vector<double> o(s.value_dim);
      for (size_t j = c.first_key; j <= c.position; ++j) {
        const auto* k =
            reinterpret_cast<const float*>(cache.blocks[j / kKvBlock].keys) +
            (j % kKvBlock * s.kv_heads + kv) * s.head_dim;
        const auto* v =
            s.values_in_keys
                ? k
                : reinterpret_cast<const float*>(
                      cache.blocks[j / kKvBlock].values) +
                      (j % kKvBlock * s.kv_heads + kv) * s.value_dim;
        double score = 0;
        for (size_t d = 0; d < s.head_dim; ++d) {
          score += static_cast<double>(q[h * s.head_dim + d]) *
                   static_cast<double>(k[d]);
        }
        score *= static_cast<double>(s.scale);
        const auto cap = static_cast<double>(s.soft_cap);
        if (cap > 0) score = cap * std::tanh(score / cap);
        const double e = std::exp(score);
        sum += e;
        for (size_t d = 0; d < s.value_dim; ++d) {
          o[d] += e * static_cast<double>(v[d]);
        }
      }
      for (size_t d = 0; d < s.value_dim; ++d) {
        // A capped score is off by a few units of the cap's last place.
        const double bound = 2e-6 + double{s.soft_cap} * 1e-6;
        ASSERT_NEAR(out[h * s.value_dim + d], o[d] / sum, bound);
      }
    }
  }
}

TEST(Attend, ASoftCapBoundsScores) {
  Random random(26);
  AttentionShape shape = {1, 1, 8, 8, 1.0f, DType::kF32, 3.0f};
  const Cache cache(shape, 40, random);
  auto q = random_floats(8, random);
  for (float& v : q) v *= 1e6f;  // without a cap one key would win alone
  std::vector<float> capped(8);
  std::vector<float> plain(8);
  attend(shape, q.data(), cache.blocks, 0, 39, nullptr, 0, 1, capped.data());
  shape.soft_cap = 0;
  attend(shape, q.data(), cache.blocks, 0, 39, nullptr, 0, 1, plain.data());
  EXPECT_NE(capped, plain);
  // Scores are 3 or -3 now: the mean of values with weights e^6 to 1.
  std::vector<double> mean(8);
  double total = 0;
  for (size_t j = 0; j < 40; ++j) {
    const float* k =
        reinterpret_cast<const float*>(cache.blocks[0].keys) + 8 * j;
    const float* v =
        reinterpret_cast<const float*>(cache.blocks[0].values) + 8 * j;
    double score = 0;
    for (size_t d = 0; d < 8; ++d) score += double{q[d]} * double{k[d]};
    const double w = std::exp(score > 0 ? 3.0 : -3.0);
    total += w;
    for (size_t d = 0; d < 8; ++d) mean[d] += w * double{v[d]};
  }
  for (size_t d = 0; d < 8; ++d) {
    EXPECT_NEAR(capped[d], mean[d] / total, 1e-5);
  }
}

// Blocks before the window need not exist.
TEST(Attend, DoesNotReadBlocksBeforeTheWindow) {
  Random random(23);
  const AttentionShape shape = {2, 1, 32, 32, 0.2f, DType::kF16};
  Cache cache(shape, 300, random);
  const auto q = random_floats(64, random);
  std::vector<float> a(64);
  std::vector<float> b(64);
  attend(shape, q.data(), cache.blocks, 140, 280, nullptr, 0, 2, a.data());
  cache.blocks[0] = {};
  cache.blocks[1] = {};
  // Nor do keys outside the window in the blocks it shares.
  std::memset(cache.keys[2].data(), 0xFF, 12 * 32 * 2);
  attend(shape, q.data(), cache.blocks, 140, 280, nullptr, 0, 2, b.data());
  EXPECT_EQ(a, b);
}

TEST(Attend, OneKeyYieldsItsValue) {
  Random random(24);
  const AttentionShape shape = {1, 1, 8, 8, 1.0f, DType::kF32};
  const Cache cache(shape, 1, random);
  const auto q = random_floats(8, random);
  std::vector<float> out(8);
  attend(shape, q.data(), cache.blocks, 0, 0, nullptr, 0, 1, out.data());
  EXPECT_EQ(std::memcmp(out.data(), cache.blocks[0].values, 32), 0);
}

TEST(StoreKv, RoundsToNearestEvenOnEveryTarget) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Random random(25);
  std::vector<float> x = {0.0f,
                          -0.0f,
                          65504.0f,
                          65519.9f,
                          65520.0f,
                          -1e30f,
                          kInf,
                          -kInf,
                          1e-8f,
                          2.9802322e-8f,
                          2.98024e-8f,
                          6.1e-5f,
                          1.00390625f,
                          1.01171875f,
                          3.3961775e38f,
                          1.0004883f,
                          1.0014648f,
                          1e-40f};
  for (int i = 0; i < 5000; ++i) {
    const auto f = random_floats(1, random)[0];
    x.push_back(std::ldexp(f, static_cast<int>(random() % 60) - 40));
  }
  x.push_back(std::numeric_limits<float>::quiet_NaN());
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    for (DType dtype : {DType::kF16, DType::kBF16}) {
      for (size_t n : {size_t{1}, size_t{7}, size_t{18}, x.size()}) {
        std::vector<std::byte> out(2 * n);
        store_kv(x.data(), n, dtype, out.data());
        for (size_t i = 0; i < n; ++i) {
          uint16_t bits;
          std::memcpy(&bits, out.data() + 2 * i, 2);
          const uint16_t expected = dtype == DType::kF16
                                        ? reference::float_to_half(x[i])
                                        : reference::float_to_bfloat(x[i]);
          ASSERT_EQ(bits, expected) << target_label(target) << " "
                                    << dtype_name(dtype) << " " << x[i];
        }
      }
    }
  }
}

TEST(StoreKv, KeepsFloat32) {
  const std::vector<float> x = {1.0f, -2.5f, 1e-40f, 3.0f, 7.0f};
  std::vector<std::byte> out(20);
  store_kv(x.data(), 5, DType::kF32, out.data());
  EXPECT_EQ(std::memcmp(out.data(), x.data(), 20), 0);
}

}  // namespace
}  // namespace mlx_flash::kernels
