// SPDX-License-Identifier: MIT
#include "io/disk_probe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "io/testing/temp_file.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

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
