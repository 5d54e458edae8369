// SPDX-License-Identifier: MIT
#include "residency/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

namespace mlx_flash {
namespace {

using testing::HasSubstr;

constexpr uint64_t kPage = 65536;  // a multiple of every page size

std::unique_ptr<Arena> make(uint64_t address, uint64_t budget) {
  return std::move(Arena::create(address, budget)).value();
}

// (Sanitizers keep memory of their own for what was touched.)
#if defined(__linux__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  statm >> total >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

TEST(Arena, AddressesCostNothingAndDecommittedPagesLeaveTheProcess) {
  const uint64_t before = resident_bytes();
  auto arena = make(uint64_t{1} << 40, uint64_t{1} << 30);
  std::byte* p = *arena->reserve(uint64_t{1} << 36);
  EXPECT_LT(resident_bytes(), before + (1 << 20));
  const uint64_t bytes = 512 * kPage;  // 32 MiB
  ASSERT_TRUE(arena->commit(p, bytes).ok());
  std::memset(p, 1, bytes);
  EXPECT_GE(resident_bytes(), before + bytes);
  arena->decommit(p, bytes);
  EXPECT_LT(resident_bytes(), before + (1 << 20));
}

TEST(Arena, CommitsOnlyWhatIsAskedForEvenWithHugePages) {
  auto arena = make(uint64_t{1} << 32, uint64_t{1} << 30);
  std::byte* p = *arena->reserve(uint64_t{1} << 30);
  ASSERT_TRUE(arena->commit(p, 256 * kPage).ok());
  const uint64_t before = resident_bytes();
  for (uint64_t i = 0; i < 8; ++i) p[i * 32 * kPage] = std::byte{1};
  EXPECT_LT(resident_bytes(), before + (1 << 20));
}

// Asked for over all that is committed, and taken back where a part of it goes.
TEST(Arena, HugePagesHoldNothingThatIsNotCommitted) {
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  const uint64_t page = Arena::system_page_bytes();
  auto arena = make(uint64_t{1} << 32, uint64_t{1} << 30);
  std::byte* p = *arena->reserve(uint64_t{1} << 30);
  const uint64_t bytes = 5 * kHuge + 3 * page;
  ASSERT_TRUE(arena->commit(p, bytes).ok());
  const uint64_t before = resident_bytes();
  arena->prefer_huge_pages(p, bytes);
  std::memset(p, 1, bytes);
  EXPECT_LT(resident_bytes(), before + bytes + (1 << 18));
  // The end of one huge page leaves and is touched again page by page.
  arena->decommit(p + 3 * kHuge, bytes - 3 * kHuge);
  EXPECT_LT(resident_bytes(), before + 3 * kHuge + (1 << 18));
  ASSERT_TRUE(arena->commit(p + 3 * kHuge, page).ok());
  p[3 * kHuge] = std::byte{1};
  EXPECT_LT(resident_bytes(), before + 3 * kHuge + (1 << 18));
  for (uint64_t i = 0; i < 3 * kHuge; i += page) EXPECT_EQ(p[i], std::byte{1});
}
#endif

TEST(Arena, TheBudgetIsExactAndNamedWhenItIsExceeded) {
  auto arena = make(100 * kPage, 10 * kPage);
  std::byte* p = *arena->reserve(100 * kPage);
  EXPECT_TRUE(arena->commit(p, 10 * kPage).ok());
  EXPECT_EQ(arena->free_bytes(), 0u);
  const Status status = arena->commit(p + 10 * kPage, kPage);
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr(std::to_string(kPage)));
  EXPECT_THAT(status.message(), HasSubstr(std::to_string(10 * kPage)));
  EXPECT_EQ(arena->committed_bytes(), 10 * kPage);
  arena->decommit(p + 3 * kPage, kPage);
  EXPECT_EQ(arena->free_bytes(), kPage);
  EXPECT_TRUE(arena->commit(p + 10 * kPage, kPage).ok());
  arena->set_budget(kPage);
  EXPECT_EQ(arena->free_bytes(), 0u);
  EXPECT_FALSE(arena->commit(p + 3 * kPage, kPage).ok());
  arena->set_budget(11 * kPage);
  EXPECT_TRUE(arena->commit(p + 3 * kPage, kPage).ok());
}

TEST(Arena, RegionsDoNotOverlapAndEndWithTheReservation) {
  auto arena = make(10 * kPage, 0);
  std::byte* a = *arena->reserve(4 * kPage);
  std::byte* b = *arena->reserve(1);
  std::byte* c = *arena->reserve(kPage);
  EXPECT_GE(b, a + 4 * kPage);
  EXPECT_GT(c, b);
  const auto d = arena->reserve(9 * kPage);
  EXPECT_EQ(d.status().code(), StatusCode::kExhausted);
  EXPECT_FALSE(arena->reserve(UINT64_MAX).ok());
  EXPECT_TRUE(arena->reserve(0).ok());
}

TEST(Arena, MemoryIsZeroAfterItCameBack) {
  auto arena = make(kPage, kPage);
  std::byte* p = *arena->reserve(kPage);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(arena->commit(p, kPage).ok());
    EXPECT_EQ(p[100], std::byte{0});
    p[100] = std::byte{7};
    arena->decommit(p, kPage);
  }
}

TEST(Arena, AbsurdSizesAreRefused) {
  EXPECT_EQ(Arena::create(UINT64_MAX, 1).status().code(),
            StatusCode::kExhausted);
  EXPECT_EQ(Arena::create(uint64_t{1} << 62, 1).status().code(),
            StatusCode::kExhausted);
}

TEST(Arena, ThreadsShareTheBudget) {
  auto arena = make(64 * kPage, 8 * kPage);
  std::byte* p = *arena->reserve(64 * kPage);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::byte* mine = p + t * 16 * kPage;
      for (int i = 0; i < 200; ++i) {
        const uint64_t bytes = (1 + static_cast<uint64_t>(i) % 4) * kPage;
        if (!arena->commit(mine, bytes).ok()) continue;
        mine[0] = std::byte{1};
        EXPECT_LE(arena->committed_bytes(), 8 * kPage);
        arena->decommit(mine, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arena->committed_bytes(), 0u);
}

}  // namespace
}  // namespace mlx_flash
