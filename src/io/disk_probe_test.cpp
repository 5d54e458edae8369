// SPDX-License-Identifier: MIT
#include "io/disk_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "io/rate_fit.h"
#include "io/testing/temp_file.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;
using testing::Pair;

// A throttle's slices of 100 ms, looked at for half a second from any moment.
TEST(RateFit, BurstsAreWorthTheirRate) {
  constexpr double kRate = 400e6;
  constexpr double kRead = 1 << 20;
  for (int phase = 0; phase < 20; ++phase) {
    RateFit fit;
    double quotient_bytes = 0;
    double first = 0;
    double last = 0;
    for (double total = kRead; total < 0.5 * kRate; total += kRead) {
      const double slice = std::floor(total / (0.1 * kRate));
      const double inside = std::fmod(total, 0.1 * kRate) / 3e9;
      const double time = slice * 0.1 + inside + phase * 0.005;
      fit.add(time, total);
      if (first == 0) first = time;
      last = time;
      quotient_bytes = total;
    }
    EXPECT_NEAR(fit.per_second() / kRate, 1, 0.05);
    EXPECT_GT(quotient_bytes / (last - first), 1.1 * kRate);
  }
}

TEST(RateFit, AnEvenStreamIsItsQuotient) {
  RateFit fit;
  for (int i = 1; i <= 100; ++i) fit.add(7 + i * 0.01, i * 5e6);
  EXPECT_NEAR(fit.per_second(), 5e8, 1);
  EXPECT_EQ(RateFit().per_second(), 0);
}

// The rate agreed on, and how many readings that took.
std::pair<double, size_t> agree(const std::vector<double>& rates) {
  size_t taken = 0;
  const auto rate =
      agreed_rate([&]() -> Result<double> { return rates[taken++]; });
  return {rate.value(), taken};
}

TEST(AgreedRate, AReadingThatWasHeldUpDoesNotCount) {
  EXPECT_THAT(agree({400, 404}), Pair(402, 2));
  EXPECT_THAT(agree({86, 400, 396}), Pair(398, 3));
  EXPECT_THAT(agree({400, 86, 390}), Pair(395, 3));
  EXPECT_THAT(agree({640, 400, 86, 410}), Pair(405, 4));
}

TEST(AgreedRate, WhereNoneAgreeItIsTheMedian) {
  EXPECT_THAT(agree({100, 500, 200, 400, 300}), Pair(300, 5));
}

TEST(AgreedRate, AFailureIsReported) {
  const auto rate = agreed_rate(
      []() -> Result<double> { return io_error("the disk is gone"); });
  ASSERT_FALSE(rate.ok());
  EXPECT_THAT(rate.status().message(), HasSubstr("gone"));
}

TEST(DiskProbe, EveryLoadIsMeasured) {
  DiskProbeOptions options;
  options.seconds_each = 0.001;
  size_t calls = 0;
  options.progress = [&](size_t done, size_t total) {
    EXPECT_EQ(done, ++calls);
    EXPECT_EQ(total, options.loads.size());
    return true;
  };
  // Longer than the largest request, and not a multiple of a block.
  const TempFile file((5 << 20) + 4711);
  const auto probe = probe_disk(file.path(), options);
  ASSERT_TRUE(probe.ok()) << probe.status().message();
  EXPECT_EQ(calls, 21u);
  ASSERT_EQ(probe->speeds.size(), 21u);
  EXPECT_EQ(probe->file_bytes, (5u << 20) + 4711);
  double best = 0;
  for (const DiskSpeed& speed : probe->speeds) {
    EXPECT_GT(speed.bytes_per_s, 0);
    EXPECT_GE(speed.reads, static_cast<uint64_t>(speed.load.depth));
    EXPECT_LE(speed.latency_p50_s, speed.latency_p99_s);
    if (speed.load.direct) best = std::max(best, speed.bytes_per_s);
  }
  EXPECT_EQ(probe->bytes_per_s(), best);
}

TEST(DiskProbe, AFileSmallerThanARequestOrABlockIsEnough) {
  for (const uint64_t bytes : {1, 4096, 4097, 70'000}) {
    DiskProbeOptions options;
    options.loads = {{uint32_t{1} << 20, 4, true}};
    options.seconds_each = 0;
    const TempFile file(bytes);
    const auto probe = probe_disk(file.path(), options);
    ASSERT_TRUE(probe.ok()) << bytes << ": " << probe.status().message();
    EXPECT_EQ(probe->speeds[0].reads, 4u);
  }
}

TEST(DiskProbe, StopsWhenAsked) {
  DiskProbeOptions options;
  options.seconds_each = 0;
  options.progress = [](size_t done, size_t) { return done < 3; };
  const TempFile file(100'000);
  const auto probe = probe_disk(file.path(), options);
  ASSERT_TRUE(probe.ok());
  EXPECT_EQ(probe->speeds.size(), 3u);
}

TEST(DiskProbe, NothingToReadIsSaid) {
  const TempFile file(0);
  const auto empty = probe_disk(file.path(), {});
  ASSERT_FALSE(empty.ok());
  EXPECT_THAT(empty.status().message(), HasSubstr("empty"));
  const auto none = probe_disk(file.path() + ".none", {});
  ASSERT_FALSE(none.ok());
  EXPECT_THAT(none.status().message(), HasSubstr("none"));
}

}  // namespace
}  // namespace mlx_flash
