// SPDX-License-Identifier: MIT
#include "kernels/kv_quant.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/attention.h"
#include "kernels/reference.h"
#include "kernels/test_matrix.h"
#include "kernels/vector_ops.h"

namespace mlx_flash::kernels {
namespace {

float stored_half(const std::byte* p) {
  uint16_t bits = 0;
  std::memcpy(&bits, p, 2);
  return reference::half_to_float(bits);
}

// The value at (position, head, i) of one part, from the description alone.
float value_of(const std::vector<std::byte>& part,
               size_t heads,
               size_t dim,
               int bits,
               size_t position,
               size_t head,
               size_t i) {
  const size_t row = position * heads + head;
  const size_t row_bytes = bits == 8 ? dim : (dim + 1) / 2;
  unsigned code = 0;
  if (bits == 8) {
    code = static_cast<unsigned>(part[row * row_bytes + i]);
  } else {
    code = static_cast<unsigned>(part[row * row_bytes + i / 2]);
    code = i % 2 == 0 ? code & 15 : code >> 4;
  }
  const size_t group = dim % 64 == 0 ? 64 : dim % 32 == 0 ? 32 : 16;
  const size_t groups = (dim + group - 1) / group;
  const std::byte* pair = part.data() + kKvBlock * heads * row_bytes +
                          (row * groups + i / group) * 4;
  return std::fma(
      static_cast<float>(code), stored_half(pair), stored_half(pair + 2));
}

TEST(QuantizeKv, IsWithinHalfAStepOfWhatWasStored) {
  Random random(31);
  for (const int bits : {8, 4}) {
    for (const size_t dim : {16u, 24u, 40u, 64u, 80u, 96u, 128u, 256u, 576u}) {
      const size_t heads = 3;
      const size_t n = kKvBlock * heads * dim;
      auto x = random_floats(n, random);
      for (size_t i = 0; i < n; ++i) x[i] = x[i] * 3 + (i % dim == 5 ? 40 : 1);
      std::vector<std::byte> rows(2 * n);
      store_kv(x.data(), n, DType::kF16, rows.data());
      std::vector<std::byte> part(kv_quant_bytes(heads, dim, bits));
      quantize_kv(rows.data(), DType::kF16, heads, dim, bits, part.data());
      const size_t group = kv_group(dim);
      for (size_t row = 0; row < kKvBlock * heads; ++row) {
        for (size_t g = 0; g < dim; g += group) {
          float low = INFINITY;
          float high = -INFINITY;
          const size_t end = std::min(dim, g + group);
          for (size_t i = g; i < end; ++i) {
            const float v = stored_half(rows.data() + 2 * (row * dim + i));
            low = std::min(low, v);
            high = std::max(high, v);
          }
          const float step = (high - low) / (bits == 8 ? 255.0f : 15.0f);
          // Half a step, and what rounding scale and bias to float16 adds.
          const float limit = step * 0.5f + (high - low) * 0x1p-11f +
                              std::max(std::fabs(low), 1e-3f) * 0x1p-10f;
          for (size_t i = g; i < end; ++i) {
            const float v = stored_half(rows.data() + 2 * (row * dim + i));
            ASSERT_NEAR(
                value_of(part, heads, dim, bits, row / heads, row % heads, i),
                v,
                limit)
                << bits << " " << dim;
          }
        }
      }
    }
  }
}

TEST(QuantizeKv, HandlesConstantsAndWhatIsNotANumber) {
  const size_t dim = 64;
  std::vector<float> x(kKvBlock * dim, 2.5f);
  x[64 + 3] = std::numeric_limits<float>::quiet_NaN();
  x[128 + 3] = std::numeric_limits<float>::infinity();
  x[192 + 3] = 1e30f;
  x[256 + 3] = 1e-30f;
  std::vector<std::byte> part(kv_quant_bytes(1, dim, 8));
  quantize_kv(reinterpret_cast<const std::byte*>(x.data()),
              DType::kF32,
              1,
              dim,
              8,
              part.data());
  EXPECT_EQ(value_of(part, 1, dim, 8, 0, 0, 9), 2.5f);
  EXPECT_TRUE(std::isnan(value_of(part, 1, dim, 8, 1, 0, 9)));
  EXPECT_TRUE(std::isnan(value_of(part, 1, dim, 8, 2, 0, 9)));
  EXPECT_NEAR(value_of(part, 1, dim, 8, 3, 0, 3), 65504.0f, 64.0f);
  EXPECT_NEAR(value_of(part, 1, dim, 8, 4, 0, 3), 0.0f, 0.01f);
}

// Random blocks, all but the last quantised, and the floats they stand for.
struct Mixed {
  Mixed(const AttentionShape& shape, int bits, size_t blocks, Random& random) {
    memory.reserve(4 * blocks);
    for (size_t b = 0; b < blocks; ++b) {
      const int block_bits = b + 1 < blocks ? bits : 0;
      const size_t k = part(shape.kv_heads, shape.head_dim, block_bits, random);
      if (shape.values_in_keys) {
        mixed.push_back({memory[k].data(), nullptr, block_bits});
        floats.push_back({memory[k + 1].data()});
        continue;
      }
      const size_t v =
          part(shape.kv_heads, shape.value_dim, block_bits, random);
      mixed.push_back({memory[k].data(), memory[v].data(), block_bits});
      floats.push_back({memory[k + 1].data(), memory[v + 1].data()});
    }
  }

  // Index of the part as it is stored; its floats are the next.
  size_t part(size_t heads, size_t d, int bits, Random& random) {
    const size_t n = kKvBlock * heads * d;
    const auto x = random_floats(n, random);
    std::vector<std::byte> rows(4 * n);
    std::memcpy(rows.data(), x.data(), 4 * n);
    if (bits == 0) {
      memory.push_back(rows);
    } else {
      std::vector<std::byte> q(kv_quant_bytes(heads, d, bits));
      quantize_kv(rows.data(), DType::kF32, heads, d, bits, q.data());
      for (size_t i = 0; i < n; ++i) {
        const size_t row = i / d;
        const float v =
            value_of(q, heads, d, bits, row / heads, row % heads, i % d);
        std::memcpy(rows.data() + 4 * i, &v, 4);
      }
      memory.push_back(std::move(q));
    }
    memory.push_back(std::move(rows));
    return memory.size() - 2;
  }

  std::vector<std::vector<std::byte>> memory;
  std::vector<KvBlock> mixed;
  std::vector<KvBlock> floats;
};

void expect_same(const AttentionShape& shape, int bits, Random& random) {
  constexpr size_t kPosition = 250;
  const Mixed cache(shape, bits, 4, random);
  const auto q = random_floats(shape.heads * shape.head_dim, random);
  for (const size_t first : {0u, 70u}) {
    std::vector<float> whole(shape.heads * shape.value_dim);
    std::vector<float> pieces(whole.size());
    attend(shape,
           q.data(),
           cache.floats,
           first,
           kPosition,
           nullptr,
           0,
           shape.heads,
           whole.data());
    std::vector<AttentionState> states(shape.heads);
    attend_begin(shape, nullptr, 0, shape.heads, states.data(), pieces.data());
    for (const auto& [at, n] :
         {std::pair<size_t, size_t>{0, 1}, {1, 2}, {3, 1}}) {
      attend_join(shape,
                  q.data(),
                  std::span(cache.mixed).subspan(at, n),
                  at,
                  first,
                  kPosition,
                  0,
                  shape.heads,
                  states.data(),
                  pieces.data());
    }
    attend_end(shape, 0, shape.heads, states.data(), pieces.data());
    ASSERT_EQ(std::memcmp(whole.data(), pieces.data(), 4 * whole.size()), 0)
        << target_name() << " " << bits << " " << shape.head_dim;
  }
}

// Quantised blocks give the bits of the float blocks they stand for.
TEST(Attend, AQuantisedBlockEqualsItsValuesInFloats) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(32);
    for (const int bits : {8, 4}) {
      for (const auto& [heads, kv_heads, dim, value_dim] :
           {std::array<size_t, 4>{9, 3, 64, 64},
            {8, 2, 40, 24},
            {20, 2, 128, 80},
            {2, 2, 96, 256},
            {3, 1, 37, 19}}) {
        expect_same(
            {heads, kv_heads, dim, value_dim, 0.2f, DType::kF32}, bits, random);
      }
      // The latent of multi-head latent attention; groups that it cuts.
      for (const auto& [heads, kv_heads, dim, value_dim] :
           {std::array<size_t, 4>{16, 1, 576, 512},
            {3, 1, 32, 24},
            {4, 2, 37, 21}}) {
        expect_same(
            {heads, kv_heads, dim, value_dim, 0.2f, DType::kF32, 0, true},
            bits,
            random);
      }
    }
  }
}

}  // namespace
}  // namespace mlx_flash::kernels
