// SPDX-License-Identifier: MIT
#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace mlx_flash {
namespace {

TEST(ThreadPool, CoversEveryIndexOnceInWholeGrains) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    for (size_t grain : {1, 5, 32}) {
      for (size_t n : {0, 1, 4, 5, 31, 32, 33, 1000}) {
        std::vector<std::atomic<int>> seen(n);
        std::atomic<int> wrong = 0;
        pool.parallel_for(n, grain, [&](size_t begin, size_t end, int thread) {
          const bool whole =
              begin % grain == 0 && (end == n || (end - begin) % grain == 0);
          if (!whole || begin >= end || end > n) ++wrong;
          if (thread < 0 || thread >= threads) ++wrong;
          for (size_t i = begin; i < end; ++i) ++seen[i];
        });
        EXPECT_EQ(wrong, 0) << threads << " threads, " << n << " by " << grain;
        for (const std::atomic<int>& count : seen) ASSERT_EQ(count, 1);
      }
    }
  }
}

TEST(ThreadPool, ManyShortJobsFollowOneAnother) {
  ThreadPool pool(4);
  std::atomic<size_t> sum = 0;
  for (int job = 0; job < 2000; ++job) {
    pool.parallel_for(7, 1, [&](size_t begin, size_t end, int) {
      for (size_t i = begin; i < end; ++i) sum += i;
    });
  }
  EXPECT_EQ(sum, 2000u * 21u);
}

TEST(ThreadPool, ThreadsThatSleepWakeForTheNextJob) {
  ThreadPool pool(3);
  for (int job = 0; job < 3; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> ranges = 0;
    pool.parallel_for(3, 1, [&](size_t, size_t, int) {
      // Each range waits for another thread, so that one cannot take them all.
      ++ranges;
      while (ranges < 2) std::this_thread::yield();
    });
    EXPECT_EQ(ranges, 3);
  }
}

}  // namespace
}  // namespace mlx_flash
