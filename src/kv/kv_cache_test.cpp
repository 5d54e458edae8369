// SPDX-License-Identifier: MIT
#include "kv/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

namespace mlx_flash {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;

KvLayout layout(int bits = 0) {
  return {.layers = 3,
          .kv_heads = 2,
          .head_dim = 24,
          .value_dim = 16,
          .dtype = DType::kF16,
          .quant_bits = bits};
}

// A cache that is driven as an engine drives it, with rows that say where they
// belong.
class Driven {
 public:
  explicit Driven(const KvLayout& layout, uint64_t budget = 64 << 20)
      : layout_(layout) {
    arena_ = std::move(Arena::create(256 << 20, budget)).value();
    pool_ = std::move(KvPool::create(*arena_, layout, 400)).value();
    cache_ = std::make_unique<KvCache>(*pool_);
  }

  Status forward(size_t begin, size_t end, bool commit = true) {
    most_full_ = 0;
    for (size_t layer = 0; layer < layout_.layers; ++layer) {
      FLASH_RETURN_IF_ERROR(cache_->open(layer, begin, end));
      for (size_t p = begin; p < end; ++p) {
        fill(cache_->key_row(layer, p), layer, p, 2 * 24);
        fill(cache_->value_row(layer, p), layer, p + 7, 2 * 16);
      }
      FLASH_RETURN_IF_ERROR(cache_->seal(layer, begin, end));
      check(layer, begin, end);
      most_full_ = std::max(most_full_, cache_->blocks_full());
      cache_->release(layer, begin, end);
    }
    if (commit) cache_->commit(end);
    return Status();
  }

  // Every query of the forward finds what the rule says it sees.
  void check(size_t layer, size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      const size_t old = kv_old_blocks(t);
      const size_t first = kv_first_block(t, layout_.window(layer));
      for (size_t b = first; b <= t / kBlock; ++b) {
        const auto& block =
            b < old ? cache_->old(layer)[b] : cache_->full(layer)[b];
        ASSERT_NE(block.keys, nullptr) << layer << " " << t << " " << b;
        ASSERT_EQ(block.bits, b < old ? layout_.quant_bits : 0);
        if (t != begin && t + 1 != end) continue;  // contents
        if (block.bits != 0) {
          ASSERT_EQ(sealed(layer, b),
                    std::string(reinterpret_cast<const char*>(block.keys),
                                layout_.old_key_bytes()));
        } else {
          ASSERT_EQ(std::memcmp(block.keys, row(layer, b * kBlock, 48), 96), 0);
        }
      }
    }
  }

  KvCache& cache() { return *cache_; }
  KvPool& pool() { return *pool_; }
  Arena& arena() { return *arena_; }
  size_t most_full() const { return most_full_; }

 private:
  static void fill(std::byte* to, size_t layer, size_t position, size_t n) {
    for (size_t i = 0; i < n; ++i) {
      // Halves between 1 and 2, all different.
      const auto bits = static_cast<uint16_t>(
          0x3C00 + (layer * 331 + position * 17 + i * 5) % 1024);
      std::memcpy(to + 2 * i, &bits, 2);
    }
  }
  const std::byte* row(size_t layer, size_t position, size_t n) {
    fill(row_, layer, position, n);
    return row_;
  }
  std::string sealed(size_t layer, size_t block) {
    std::vector<std::byte> rows(kBlock * layout_.key_row_bytes());
    for (size_t i = 0; i < kBlock; ++i) {
      fill(rows.data() + i * 96, layer, block * kBlock + i, 48);
    }
    std::string out(layout_.old_key_bytes(), '\0');
    kernels::quantize_kv(rows.data(),
                         DType::kF16,
                         2,
                         24,
                         layout_.quant_bits,
                         reinterpret_cast<std::byte*>(out.data()));
    return out;
  }

  KvLayout layout_;
  std::byte row_[96];
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<KvCache> cache_;
  size_t most_full_ = 0;
};

TEST(KvSight, IsTheRuleOfTheSpecification) {
  for (size_t t = 0; t < 1000; ++t) {
    for (size_t b = 0; b < 20; ++b) {
      const bool old = (b + 1) * 64 + 128 <= t + 1;
      EXPECT_EQ(b < kv_old_blocks(t), old) << t << " " << b;
    }
  }
  EXPECT_EQ(kv_first_block(500, 0), 0u);
  EXPECT_EQ(kv_first_block(99, 100), 0u);
  EXPECT_EQ(kv_first_block(163, 100), 1u);
}

TEST(KvCache, RowsOfDifferentPositionsAndLayersDoNotOverlap) {
  Driven driven(layout());
  ASSERT_TRUE(driven.forward(0, 130).ok());
  std::set<std::byte*> rows;
  for (size_t layer = 0; layer < 3; ++layer) {
    for (size_t p = 0; p < 130; ++p) {
      rows.insert(driven.cache().key_row(layer, p));
      rows.insert(driven.cache().value_row(layer, p));
    }
  }
  EXPECT_EQ(rows.size(), 3u * 130 * 2);
  std::byte* before = nullptr;
  for (std::byte* row : rows) {
    if (before != nullptr) {
      EXPECT_GE(row - before, 2 * 16 * 2);
    }
    before = row;
  }
}

TEST(KvCache, EveryQueryFindsWhatTheRuleSaysHoweverThePromptIsCut) {
  for (const int bits : {0, 4, 8}) {
    for (const size_t chunk : {1u, 63u, 64u, 200u, 700u}) {
      Driven driven(layout(bits));
      for (size_t at = 0; at < 700; at += chunk) {
        ASSERT_TRUE(driven.forward(at, std::min<size_t>(at + chunk, 700)).ok());
      }
      EXPECT_EQ(driven.cache().blocks_old(),
                bits == 0 ? 0 : 3 * kv_old_blocks(699));
    }
  }
}

TEST(KvCache, QuantisedItKeepsATailAndOneLayerOfThePrompt) {
  Driven driven(layout(8));
  ASSERT_TRUE(driven.forward(0, 64 * 40).ok());
  EXPECT_LE(driven.most_full(), 3u * 5 + 40);
  EXPECT_LE(driven.cache().blocks_full(), 3u * 5);
  const auto growth = driven.cache().growth(64 * 40, 64 * 80);
  ASSERT_TRUE(driven.forward(64 * 40, 64 * 80).ok());
  EXPECT_LE(driven.most_full(), 3u * 5 + growth.full);
  EXPECT_EQ(driven.cache().blocks_old(), 3 * kv_old_blocks(64 * 80 - 1));
}

TEST(KvCache, GrowthIsEnough) {
  for (const int bits : {0, 8}) {
    Driven driven(layout(bits));
    for (size_t at = 0; at < 1500;) {
      const size_t end = at + 1 + at * 7 % 190;
      const auto growth = driven.cache().growth(at, end);
      KvPool& pool = driven.pool();
      driven.arena().set_budget(driven.arena().committed_bytes() +
                                pool.full().bytes_missing(growth.full) +
                                pool.old().bytes_missing(growth.old));
      ASSERT_TRUE(driven.forward(at, end).ok()) << at << " " << bits;
      at = end;
    }
  }
}

TEST(KvCache, GoesBackWithinTheRollbackAndNotPastIt) {
  for (const size_t length : {200u, 256u, 257u, 600u, 639u, 640u, 641u}) {
    for (size_t back = 1; back <= kKvRollback; ++back) {
      Driven driven(layout(8));
      ASSERT_TRUE(driven.forward(0, length).ok());
      ASSERT_TRUE(driven.cache().truncate(length - back)) << length << back;
      ASSERT_TRUE(driven.forward(length - back, length + 100).ok());
    }
  }
  Driven driven(layout(8));
  ASSERT_TRUE(driven.forward(0, 1000).ok());
  EXPECT_FALSE(driven.cache().truncate(300));
  EXPECT_EQ(driven.cache().blocks_full(), 0u);
  EXPECT_EQ(driven.cache().blocks_old(), 0u);
  Driven plain(layout(0));
  ASSERT_TRUE(plain.forward(0, 1000).ok());
  EXPECT_TRUE(plain.cache().truncate(300));
  ASSERT_TRUE(plain.forward(300, 700).ok());
}

TEST(KvCache, AFailedForwardIsUndone) {
  Driven driven(layout(8));
  ASSERT_TRUE(driven.forward(0, 900).ok());
  ASSERT_TRUE(driven.forward(900, 2500, false).ok());
  ASSERT_TRUE(driven.cache().truncate(900));
  ASSERT_TRUE(driven.forward(900, 1000).ok());
}

TEST(KvCache, ASlidingLayerKeepsItsWindow) {
  KvLayout sliding = layout(8);
  sliding.windows = {0, 100, 300};
  Driven driven(sliding);
  for (size_t at = 0; at < 2000; at += 50) {
    ASSERT_TRUE(driven.forward(at, at + 50).ok());
  }
  const auto held = [&](size_t layer) {
    const auto old = driven.cache().old(layer);
    return std::count_if(
        old.begin(), old.end(), [](const auto& b) { return b.keys; });
  };
  EXPECT_EQ(held(0), static_cast<long>(kv_old_blocks(1999)));
  EXPECT_LE(held(1), 1);
  EXPECT_LE(held(2), 5);
  EXPECT_GE(held(2), 2);
}

TEST(KvCache, InFullPrecisionASlidingLayerKeepsItsWindowToo) {
  KvLayout sliding = layout(0);
  sliding.windows = {0, 100, 300};
  Driven driven(sliding);
  for (size_t at = 0; at < 2000; at += 50) {
    ASSERT_TRUE(driven.forward(at, at + 50).ok());
  }
  const auto held = [&](size_t layer) {
    const auto full = driven.cache().full(layer);
    return std::count_if(
        full.begin(), full.end(), [](const auto& b) { return b.keys; });
  };
  EXPECT_EQ(held(0), 32);
  EXPECT_LE(held(1), 4);
  EXPECT_LE(held(2), 7);
  ASSERT_TRUE(driven.cache().truncate(2000 - kKvRollback));
  ASSERT_TRUE(driven.forward(2000 - kKvRollback, 2100).ok());
  ASSERT_TRUE(driven.cache().truncate(0));
  EXPECT_EQ(driven.pool().old_bytes, 0u);
}

TEST(KvCache, WhatCannotBePartOfASavedCacheIsNotTakenUp) {
  for (const int bits : {0, 8}) {
    const KvLayout shape = layout(bits);
    Driven driven(shape);
    KvCache& cache = driven.cache();
    constexpr size_t kLength = 400;  // old: blocks 0 to 3
    const std::vector<std::byte> old(shape.old_bytes());
    const std::vector<std::byte> full(shape.full_bytes());
    const auto adopt = [&](uint32_t layer, uint32_t block, bool is_old) {
      const auto& bytes = is_old ? old : full;
      return cache.adopt({layer, block, is_old}, bytes, kLength);
    };
    EXPECT_EQ(adopt(3, 0, true).code(), StatusCode::kIoError);
    EXPECT_EQ(adopt(0, 7, false).code(), StatusCode::kIoError);
    EXPECT_EQ(adopt(0, 4, true).code(), StatusCode::kIoError);
    EXPECT_EQ(
        cache.adopt({0, 0, true}, std::span(old).first(64), kLength).code(),
        StatusCode::kIoError);
    ASSERT_TRUE(adopt(0, 1, true).ok());
    EXPECT_EQ(adopt(0, 1, true).code(), StatusCode::kIoError);
    ASSERT_TRUE(adopt(0, 5, false).ok());
    EXPECT_EQ(adopt(0, 5, false).code(), StatusCode::kIoError);
    // Blocks are missing: nothing stays.
    EXPECT_FALSE(cache.adopted(kLength));
    EXPECT_EQ(cache.blocks_full(), 0u);
    EXPECT_EQ(driven.pool().old_bytes, 0u);

    for (uint32_t layer = 0; layer < 3; ++layer) {
      for (uint32_t b = 0; b < 4; ++b) ASSERT_TRUE(adopt(layer, b, true).ok());
      for (uint32_t b = 4; b < 7; ++b) ASSERT_TRUE(adopt(layer, b, false).ok());
    }
    EXPECT_TRUE(cache.adopted(kLength));
    EXPECT_EQ(cache.blocks_full(), 3u * (bits == 0 ? 7 : 3));
    EXPECT_EQ(cache.blocks_old(), bits == 0 ? 0u : 12u);
  }
}

TEST(KvCache, TruncateGivesBlocksBackForOthers) {
  auto arena = Arena::create(64 << 20, 64 << 20);
  auto pool = KvPool::create(**arena, layout(), 9);
  ASSERT_TRUE(pool.ok());
  KvCache a(**pool);
  KvCache b(**pool);
  for (size_t i = 0; i < 3; ++i) ASSERT_TRUE(a.open(i, 0, 192).ok());
  EXPECT_EQ(b.open(0, 0, 1).code(), StatusCode::kExhausted);
  EXPECT_TRUE(a.truncate(65));
  EXPECT_TRUE(b.open(0, 0, 64).ok());
  EXPECT_NE(a.full(0)[0].keys, b.full(0)[0].keys);
}

TEST(KvCache, TheArenasBudgetIsTheLimit) {
  const size_t stride = layout().full_stride();
  auto arena = Arena::create(64 << 20, 2 * stride);
  auto pool = KvPool::create(**arena, layout(), 100);
  ASSERT_TRUE(pool.ok());
  {
    KvCache cache(**pool);
    EXPECT_TRUE(cache.open(0, 0, 128).ok());
    EXPECT_EQ((*arena)->committed_bytes(), 2 * stride);
    EXPECT_EQ(cache.open(0, 128, 129).code(), StatusCode::kExhausted);
    EXPECT_EQ(cache.blocks_full(), 2u);
  }
  (*pool)->trim();
  EXPECT_EQ((*arena)->committed_bytes(), 0u);
}

}  // namespace
}  // namespace mlx_flash
