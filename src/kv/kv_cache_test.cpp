// SPDX-License-Identifier: MIT
#include "kv/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace mlx_flash {
namespace {

KvLayout layout() {
  return {.layers = 3,
          .kv_heads = 2,
          .head_dim = 24,
          .value_dim = 16,
          .dtype = DType::kF16};
}

TEST(KvCache, RowsOfDifferentPositionsAndLayersDoNotOverlap) {
  auto arena = Arena::create(64 << 20, 64 << 20);
  ASSERT_TRUE(arena.ok());
  auto pool = KvPool::create(**arena, layout(), 8);
  ASSERT_TRUE(pool.ok());
  KvCache cache(**pool);
  ASSERT_TRUE(cache.ensure(130).ok());
  EXPECT_EQ(cache.capacity(), 192u);
  uint8_t mark = 0;
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t p = 0; p < 130; ++p) {
      std::memset(cache.key_row(layer, p), ++mark, 2 * 24 * 2);
      std::memset(cache.value_row(layer, p), ++mark, 2 * 16 * 2);
    }
  }
  mark = 0;
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t p = 0; p < 130; ++p) {
      ++mark;
      EXPECT_EQ(static_cast<uint8_t>(*cache.key_row(layer, p)), mark);
      EXPECT_EQ(static_cast<uint8_t>(cache.key_row(layer, p)[95]), mark);
      ++mark;
      EXPECT_EQ(static_cast<uint8_t>(cache.value_row(layer, p)[63]), mark);
    }
  }
  EXPECT_EQ(cache.blocks(1)[2].keys, cache.key_row(1, 128));
}

TEST(KvCache, TruncateGivesPagesBackForOthers) {
  auto arena = Arena::create(64 << 20, 64 << 20);
  auto pool = KvPool::create(**arena, layout(), 3);
  ASSERT_TRUE(pool.ok());
  KvCache a(**pool);
  KvCache b(**pool);
  ASSERT_TRUE(a.ensure(192).ok());
  const Status full = b.ensure(1);
  EXPECT_EQ(full.code(), StatusCode::kExhausted);
  a.truncate(65);
  EXPECT_EQ(a.capacity(), 128u);
  EXPECT_TRUE(b.ensure(64).ok());
  EXPECT_NE(a.blocks(0)[0].keys, b.blocks(0)[0].keys);
}

TEST(KvCache, TheArenasBudgetIsTheLimit) {
  const size_t page = (layout().page_bytes() + 4095) / 4096 * 4096;
  auto arena = Arena::create(64 << 20, 2 * page);
  auto pool = KvPool::create(**arena, layout(), 100);
  ASSERT_TRUE(pool.ok());
  {
    KvCache cache(**pool);
    EXPECT_TRUE(cache.ensure(128).ok());
    EXPECT_EQ((*arena)->committed_bytes(), 2 * page);
    EXPECT_EQ(cache.ensure(129).code(), StatusCode::kExhausted);
    EXPECT_EQ(cache.capacity(), 128u);
  }
  (*pool)->trim();
  EXPECT_EQ((*arena)->committed_bytes(), 0u);
}

}  // namespace
}  // namespace mlx_flash
