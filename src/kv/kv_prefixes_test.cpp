// SPDX-License-Identifier: MIT
#include "kv/kv_prefixes.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>

namespace mlx_flash {
namespace {

using Ids = std::vector<int32_t>;

constexpr size_t kBlock = kernels::kKvBlock;
constexpr uint32_t kLayers = 3;

KvLayout layout(int bits, std::vector<uint32_t> windows = {}) {
  return {.layers = kLayers,
          .kv_heads = 1,
          .head_dim = 16,
          .value_dim = 16,
          .dtype = DType::kF16,
          .quant_bits = bits,
          .windows = std::move(windows)};
}

// Caches whose rows say which tokens led to them.
class World {
 public:
  World(const KvLayout& layout, uint64_t bytes, bool disk) : layout_(layout) {
    std::string name =
        (std::filesystem::current_path() / "kv-prefixes-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    arena_ = std::move(Arena::create(512 << 20, 128 << 20)).value();
    pool_ = std::move(KvPool::create(*arena_, layout, 2000)).value();
    queue_ = make_read_queue(IoKind::kThreads, {});
    auto shelf =
        disk ? KvShelf::in_file(*queue_, layout, bytes, {.folder = folder_})
             : KvShelf::in_memory(*arena_, layout, bytes);
    EXPECT_TRUE(shelf.ok()) << shelf.status().message();
    prefixes_ = std::make_unique<KvPrefixes>(
        layout, std::move(shelf).value(), [this](uint64_t more) {
          asked_ += more;
          return refuse_ ? exhausted("no room") : Status();
        });
  }
  ~World() {
    prefixes_.reset();
    std::filesystem::remove_all(folder_);
  }

  // Runs tokens [begin, end).
  void forward(KvCache& cache, const Ids& ids, size_t begin, size_t end) {
    std::vector<uint16_t> rows = this->rows(ids);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_TRUE(cache.open(layer, begin, end).ok());
      for (size_t p = begin; p < end; ++p) {
        fill(cache.key_row(layer, p), rows[p], layer);
        fill(cache.value_row(layer, p), rows[p], layer + 9);
      }
      ASSERT_TRUE(cache.seal(layer, begin, end).ok());
      cache.release(layer, begin, end);
    }
    cache.commit(end);
  }

  // Runs and keeps a request.
  Status leave(const Ids& ids, size_t chunk = 100) {
    KvCache cache(*pool_);
    for (size_t at = 0; at < ids.size(); at += chunk) {
      forward(cache, ids, at, std::min(ids.size(), at + chunk));
    }
    return prefixes_->keep(cache, ids);
  }

  // The length of what `ids` begins with, after checking every row of it that
  // the next query sees.
  size_t take(const Ids& ids) {
    const KvPrefixes::Match match = prefixes_->find(ids);
    if (match.length == 0) return 0;
    KvCache cache(*pool_);
    const auto growth = cache.growth_of(match.old_records, match.full_records);
    const auto free = [](const BlockPool& pool) {
      return pool.committed_bytes() / pool.stride() - pool.free();
    };
    const size_t full = free(pool_->full());
    const size_t old = free(pool_->old());
    const Status status = prefixes_->adopt(match, cache);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_LE(free(pool_->full()), full + growth.full);
    EXPECT_LE(free(pool_->old()), old + growth.old);
    check(cache, ids, match.length);
    return match.length;
  }

  void check(const KvCache& cache, const Ids& ids, size_t length) {
    const std::vector<uint16_t> rows = this->rows(ids);
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const size_t old = cache.kept_old(layer, length);
      // At most the newest may not have been made yet.
      ASSERT_LE(kv_old_blocks(length), old + 1);
      const size_t first = kv_first_block(length, layout_.window(layer));
      for (size_t b = first; b * kBlock < length; ++b) {
        const auto& block =
            b < old ? cache.old(layer)[b] : cache.full(layer)[b];
        ASSERT_NE(block.keys, nullptr) << layer << " " << b << " " << length;
        std::vector<std::byte> want(layout_.full_bytes());
        const size_t n = std::min(kBlock, length - b * kBlock);
        for (size_t i = 0; i < n; ++i) {
          fill(want.data() + i * 32, rows[b * kBlock + i], layer);
          fill(
              want.data() + (kBlock + i) * 32, rows[b * kBlock + i], layer + 9);
        }
        if (block.bits == 0) {
          ASSERT_EQ(std::memcmp(block.keys, want.data(), n * 32), 0);
          ASSERT_EQ(
              std::memcmp(block.values, want.data() + kBlock * 32, n * 32), 0);
        } else {
          std::vector<std::byte> sealed(layout_.old_bytes());
          kernels::quantize_kv(
              want.data(), DType::kF16, 1, 16, block.bits, sealed.data());
          ASSERT_EQ(
              std::memcmp(block.keys, sealed.data(), layout_.old_key_bytes()),
              0);
        }
      }
    }
  }

  KvPrefixes& prefixes() { return *prefixes_; }
  KvPool& pool() { return *pool_; }
  Arena& arena() { return *arena_; }
  uint64_t asked() const { return asked_; }
  void refuse(bool refuse) { refuse_ = refuse; }

 private:
  // A half between 1 and 2 for each position, of all tokens up to it.
  static std::vector<uint16_t> rows(const Ids& ids) {
    std::vector<uint16_t> rows;
    uint32_t h = 1;
    for (const int32_t id : ids) {
      h = (h ^ static_cast<uint32_t>(id)) * 0x9e3779b1;
      rows.push_back(static_cast<uint16_t>(h >> 16));
    }
    return rows;
  }
  static void fill(std::byte* to, uint16_t row, uint32_t salt) {
    for (uint32_t i = 0; i < 16; ++i) {
      const auto half =
          static_cast<uint16_t>(0x3C00 + (row + salt * 331 + i * 5) % 1024);
      std::memcpy(to + 2 * i, &half, 2);
    }
  }

  KvLayout layout_;
  std::string folder_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<ReadQueue> queue_;
  std::unique_ptr<KvPrefixes> prefixes_;
  uint64_t asked_ = 0;
  bool refuse_ = false;
};

Ids ids_of(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  Ids ids(n);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 50);
  return ids;
}

// Some of an earlier one, then other tokens.
Ids branch(const std::vector<Ids>& others, std::mt19937& random) {
  Ids ids;
  if (!others.empty() && random() % 4 != 0) {
    const Ids& from = others[random() % others.size()];
    ids.assign(from.begin(),
               from.begin() + static_cast<long>(random() % (from.size() + 1)));
  }
  const size_t more = 1 + random() % 300;
  for (size_t i = 0; i < more; ++i) {
    ids.push_back(static_cast<int32_t>(random() % 3));
  }
  return ids;
}

size_t common(const Ids& a, const Ids& b) {
  size_t n = 0;
  while (n < a.size() && n < b.size() && a[n] == b[n]) ++n;
  return n;
}

TEST(KvPrefixes, TheLongestBeginningIsFound) {
  for (const bool disk : {false, true}) {
    for (const int bits : {0, 8, 4}) {
      World world(layout(bits), 100 << 20, disk);
      std::mt19937 random(7);
      std::vector<Ids> kept;
      size_t most = 0;
      for (int i = 0; i < (disk ? 20 : 60); ++i) {
        const Ids ids = branch(kept, random);
        size_t want = 0;
        for (const Ids& other : kept) {
          const size_t n = common(ids, other);
          if (bits == 0 || other.size() - n <= kKvRollback) {
            want = std::max(want, n);
          }
        }
        EXPECT_EQ(world.take(ids), want) << disk << bits << " " << i;
        most = std::max(most, want);
        ASSERT_TRUE(world.leave(ids, 1 + random() % 200).ok());
        EXPECT_EQ(world.take(ids), ids.size());
        kept.push_back(ids);
      }
      EXPECT_GT(most, 100u);
      EXPECT_EQ(world.prefixes().dropped(), 0u);
      EXPECT_EQ(world.pool().old_bytes, 0u);
    }
  }
}

TEST(KvPrefixes, WhatIsThereIsNotKeptTwice) {
  for (const int bits : {0, 8}) {
    World world(layout(bits), 100 << 20, false);
    const Ids ids = ids_of(700, 1);
    ASSERT_TRUE(world.leave(ids).ok());
    const uint64_t used = world.prefixes().shelf().bytes_used();
    const size_t size = world.prefixes().size();
    ASSERT_TRUE(world.leave(ids).ok());
    EXPECT_EQ(world.prefixes().shelf().bytes_used(), used);
    EXPECT_EQ(world.prefixes().size(), size);
    if (bits != 0) continue;
    // A block that ended early is part of the one that goes on.
    Ids longer = ids;
    const Ids more = ids_of(68, 2);
    longer.insert(longer.end(), more.begin(), more.end());
    ASSERT_TRUE(world.leave(longer).ok());
    EXPECT_EQ(world.prefixes().size(), 12u);
  }
}

TEST(KvPrefixes, BoundedTheLeastRecentlyUsedLeafGoesFirst) {
  for (const bool disk : {false, true}) {
    for (const int bits : {0, 8, 4}) {
      World world(layout(bits), 600'000, disk);
      std::mt19937 random(8);
      std::vector<Ids> kept;
      size_t found = 0;
      const int rounds = disk ? 40 : 150;
      for (int i = 0; i < rounds; ++i) {
        const Ids ids = branch(kept, random);
        found += world.take(ids);
        ASSERT_TRUE(world.leave(ids).ok());
        const KvShelf& shelf = world.prefixes().shelf();
        EXPECT_LE(shelf.bytes_used(), 600'000u);
        EXPECT_LE(shelf.committed_bytes(), 600'000u + 2 * 8192);
        if (ids.size() < 600) {
          EXPECT_EQ(world.take(ids), ids.size()) << disk << bits << i;
        }
        kept.push_back(ids);
        if (kept.size() > 12) kept.erase(kept.begin());
      }
      EXPECT_GT(found, 1000u);
      EXPECT_GT(world.prefixes().dropped(), 20u);
      world.prefixes().clear();
      EXPECT_EQ(world.prefixes().shelf().bytes_used(), 0u);
      EXPECT_EQ(world.prefixes().shelf().committed_bytes(), 0u);
      EXPECT_EQ(world.prefixes().size(), 0u);
    }
  }
}

TEST(KvPrefixes, UseCountsAndNotAge) {
  World world(layout(0), 0, false);
  // Room for three requests of five blocks.
  World room(layout(0), 16 * 3 * layout(0).full_stride(), false);
  for (uint32_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(room.leave(ids_of(320, i)).ok());
  }
  EXPECT_EQ(room.take(ids_of(320, 0)), 320u);
  ASSERT_TRUE(room.leave(ids_of(320, 3)).ok());
  EXPECT_EQ(room.take(ids_of(320, 0)), 320u);
  EXPECT_LT(room.take(ids_of(320, 1)), 320u);
  EXPECT_EQ(room.take(ids_of(320, 2)), 320u);
  EXPECT_EQ(room.take(ids_of(320, 3)), 320u);
  // No room at all keeps nothing and fails nothing.
  EXPECT_TRUE(world.leave(ids_of(320, 0)).ok());
  EXPECT_EQ(world.prefixes().size(), 0u);
}

TEST(KvPrefixes, WhatDoesNotFitIsKeptAsFarAsItIsOfUse) {
  const KvLayout plain = layout(0);
  World some(plain, 5 * 3 * plain.full_stride(), false);
  ASSERT_TRUE(some.leave(ids_of(700, 1)).ok());
  EXPECT_EQ(some.take(ids_of(700, 1)), 320u);
  World none(layout(8), 5 * 3 * layout(8).old_stride(), false);
  ASSERT_TRUE(none.leave(ids_of(700, 1)).ok());
  EXPECT_EQ(none.prefixes().size(), 0u);
}

TEST(KvPrefixes, SlidingLayersAreWholeOrNotTaken) {
  for (const bool disk : {false, true}) {
    for (const int bits : {0, 8}) {
      World world(layout(bits, {0, 100, 300}), 100 << 20, disk);
      std::mt19937 random(9);
      std::vector<Ids> kept;
      size_t found = 0;
      for (int i = 0; i < (disk ? 20 : 60); ++i) {
        const Ids ids = branch(kept, random);
        found += world.take(ids);  // checks what the windows see
        ASSERT_TRUE(world.leave(ids, 1 + random() % 200).ok());
        EXPECT_EQ(world.take(ids), ids.size());
        if (ids.size() > 64) {
          Ids back(ids.begin(), ids.end() - 64);
          back.push_back(99);
          EXPECT_EQ(world.take(back), back.size() - 1);
        }
        kept.push_back(ids);
      }
      EXPECT_GT(found, 1000u);
    }
  }
}

TEST(KvPrefixes, WithoutMemoryNothingIsKept) {
  World world(layout(0), 1 << 20, false);
  world.refuse(true);
  EXPECT_EQ(world.leave(ids_of(300, 1)).code(), StatusCode::kExhausted);
  EXPECT_EQ(world.prefixes().size(), 0u);
  EXPECT_EQ(world.asked(), 5u * kLayers * layout(0).full_stride());
  world.refuse(false);
  ASSERT_TRUE(world.leave(ids_of(300, 1)).ok());
  EXPECT_EQ(world.take(ids_of(300, 1)), 300u);
}

// Blocks of earlier requests lie in a file of their own: whenever the process
// dies while it is written, nothing of it stays.
TEST(KvPrefixes, KilledWhileItKeepsNoFileStays) {
  std::string name =
      (std::filesystem::current_path() / "kv-reuse-test-XXXXXX").string();
  const std::string folder = ::mkdtemp(name.data());
  const KvLayout shape = layout(8);
  const auto keep_forever = [&] {
    // Threads of a queue do not survive a fork: this process has its own.
    const auto queue = make_read_queue(IoKind::kThreads, {});
    const std::vector<std::byte> block(shape.full_bytes());
    for (;;) {
      auto shelf = KvShelf::in_file(
          *queue, shape, uint64_t{1} << 30, {.folder = folder});
      if (!shelf.ok()) ::_exit(3);
      std::vector<KvShelf::Item> items;
      for (uint32_t b = 0; b < 12; ++b) {
        const bool old = b % 3 != 0;
        auto item =
            (*shelf)->put({0, b, old},
                          std::span(block).first(old ? shape.old_bytes()
                                                     : shape.full_bytes()));
        if (!item.ok()) ::_exit(4);
        items.push_back(*item);
        if (!(*shelf)->get(items.back()).ok()) ::_exit(5);
        if (b % 4 == 3) (*shelf)->give(items[b - 1]);
      }
    }
  };
  std::mt19937 random(17);
  for (int round = 0; round < 200; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) keep_forever();
    ::usleep(500 + static_cast<useconds_t>(random() % 12000));
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY);
    (void)KvFile::remove_leftovers(fd);
    ::close(fd);
    ASSERT_TRUE(std::filesystem::is_empty(folder)) << round;
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace mlx_flash
