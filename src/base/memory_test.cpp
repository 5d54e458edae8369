// SPDX-License-Identifier: MIT
#include "base/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

namespace mlx_flash {
namespace {

using ::testing::ElementsAre;

// Recorded from Linux 6.1.
constexpr const char* kStatus =
    "Name:\tcat\nVmPeak:\t    2804 kB\nVmHWM:\t    1944 kB\n"
    "VmRSS:\t     964 kB\nThreads:\t1\n";
constexpr const char* kMounts =
    "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup "
    "rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 master:1 - "
    "cgroup2 cgroup2 rw,nsdelegate\n";

ReadText reader(std::map<std::string, std::string> files) {
  return [files = std::move(files)](
             const std::string& path) -> std::optional<std::string> {
    const auto found = files.find(path);
    if (found == files.end()) return std::nullopt;
    return found->second;
  };
}

TEST(ProcField, ReadsKilobytesAndPlainNumbers) {
  EXPECT_EQ(parse_proc_field(kStatus, "VmRSS"), 964U * 1024);
  EXPECT_EQ(parse_proc_field(kStatus, "VmHWM"), 1944U * 1024);
  EXPECT_EQ(parse_proc_field("rchar: 6976\nread_bytes: 4096\n", "read_bytes"),
            4096U);
  EXPECT_EQ(parse_proc_field(kStatus, "Vm"), std::nullopt);
  EXPECT_EQ(parse_proc_field("VmRSS:\tmany kB\n", "VmRSS"), std::nullopt);
  EXPECT_EQ(parse_proc_field("", "VmRSS"), std::nullopt);
}

TEST(CgroupLimit, TreatsBothWaysOfUnlimitedAsNone) {
  EXPECT_EQ(parse_cgroup_limit("64000000\n"), 64'000'000U);
  EXPECT_EQ(parse_cgroup_limit("0\n"), 0U);
  EXPECT_EQ(parse_cgroup_limit("max\n"), std::nullopt);
  EXPECT_EQ(parse_cgroup_limit("9223372036854771712\n"), std::nullopt);
  EXPECT_EQ(parse_cgroup_limit("12 13\n"), std::nullopt);
  EXPECT_EQ(parse_cgroup_limit(""), std::nullopt);
}

TEST(CgroupFolders, FollowBothVersionsUpToTheMount) {
  const auto found = parse_cgroup_folders(
      "9:name=systemd:/\n4:memory:/process_api/361d\n1:cpu:/\n0::/\n", kMounts);
  ASSERT_EQ(found.size(), 2U);
  EXPECT_FALSE(found[0].v2);
  EXPECT_THAT(found[0].folders,
              ElementsAre("/sys/fs/cgroup/memory/process_api/361d",
                          "/sys/fs/cgroup/memory/process_api",
                          "/sys/fs/cgroup/memory"));
  EXPECT_TRUE(found[1].v2);
  EXPECT_THAT(found[1].folders, ElementsAre("/sys/fs/cgroup/unified"));
}

TEST(CgroupFolders, TakeTheMountedPartOfAContainer) {
  const char* mounts =
      "36 25 0:32 /docker/ab /sys/fs/cgroup\\040x ro - cgroup2 none rw\n";
  EXPECT_THAT(parse_cgroup_folders("0::/docker/ab/job\n", mounts)[0].folders,
              ElementsAre("/sys/fs/cgroup x/job", "/sys/fs/cgroup x"));
  // A path the mount does not show; one that only begins alike.
  EXPECT_THAT(parse_cgroup_folders("0::/docker/abc\n", mounts)[0].folders,
              ElementsAre("/sys/fs/cgroup x"));
  EXPECT_THAT(parse_cgroup_folders("0::/../other\n",
                                   "1 1 0:1 / /c rw - cgroup2 none rw\n")[0]
                  .folders,
              ElementsAre("/c"));
}

TEST(CgroupFolders, SurviveNonsense) {
  for (const char* text : {"", "\n\n", "::", "0::", "x:memory", "a - b - c"}) {
    EXPECT_TRUE(parse_cgroup_folders(text, text).empty());
    EXPECT_TRUE(parse_cgroup_folders("0::/a\n4:memory:/b\n", text).empty());
  }
}

TEST(CgroupMemory, TakesTheTightestAncestor) {
  const auto memory = read_cgroup_memory(
      {{true, {"/c/a/b", "/c/a", "/c"}}},
      reader({{"/c/a/b/memory.max", "max\n"},
              {"/c/a/b/memory.current", "5000\n"},
              {"/c/a/memory.max", "100000\n"},
              {"/c/a/memory.high", "90000\n"},
              {"/c/a/memory.current", "70000\n"},
              {"/c/a/memory.stat",
               "anon 1000\ninactive_file 20000\nactive_file 10000\n"},
              {"/c/memory.max", "1000000\n"},
              {"/c/memory.current", "990000\n"}}));
  EXPECT_EQ(memory.limit_bytes, 90'000U);
  EXPECT_EQ(memory.room_bytes, 10'000U);  // the root's, less than a's 50,000
}

TEST(CgroupMemory, ReadsVersion1AndItsHiddenAncestors) {
  const std::map<std::string, std::string> files = {
      {"/m/j/memory.limit_in_bytes", "9223372036854771712\n"},
      {"/m/j/memory.usage_in_bytes", "5000\n"},
      {"/m/j/memory.stat", "hierarchical_memory_limit 64000\n"},
      {"/m/memory.limit_in_bytes", "200000\n"},
      {"/m/memory.usage_in_bytes", "150000\n"},
      {"/m/memory.stat", "total_inactive_file 1000\ntotal_active_file 4000\n"}};
  const auto memory =
      read_cgroup_memory({{false, {"/m/j", "/m"}}}, reader(files));
  EXPECT_EQ(memory.limit_bytes, 64'000U);
  EXPECT_EQ(memory.room_bytes, 55'000U);
}

TEST(CgroupMemory, HasNoLimitWithoutFiles) {
  const auto memory = read_cgroup_memory({{true, {"/c"}}}, reader({}));
  EXPECT_EQ(memory.limit_bytes, std::nullopt);
  EXPECT_EQ(memory.room_bytes, std::nullopt);
}

TEST(CgroupMemory, TakesVersion1sSoftLimitToo) {
  const auto memory =
      read_cgroup_memory({{false, {"/m"}}},
                         reader({{"/m/memory.limit_in_bytes", "200000\n"},
                                 {"/m/memory.soft_limit_in_bytes", "120000\n"},
                                 {"/m/memory.usage_in_bytes", "90000\n"}}));
  EXPECT_EQ(memory.limit_bytes, 120'000U);
  EXPECT_EQ(memory.room_bytes, 30'000U);
}

TEST(AllowedRam, HasNoMargin) {
  const MachineMemory machine{32'000'000'000, 10'000'000'000};
  EXPECT_EQ(allowed_ram(machine, {}, 7), 10'000'000'007U);
  EXPECT_EQ(allowed_ram(machine, {64'000'000, 30'000'000}, 4'000'000),
            34'000'000U);
  EXPECT_EQ(allowed_ram(machine, {64'000'000, 64'000'000}, 50'000'000),
            64'000'000U);
}

TEST(MemoryPressure, ReadsTheTotalOfSome) {
  // Recorded from Linux 6.1.
  EXPECT_EQ(parse_pressure_total(
                "some avg10=0.12 avg60=0.05 avg300=0.00 total=2500000\n"
                "full avg10=0.00 avg60=0.00 avg300=0.00 total=99\n"),
            2.5);
  EXPECT_EQ(parse_pressure_total("full avg10=0.00 total=99\n"), std::nullopt);
  EXPECT_EQ(parse_pressure_total("some avg10=0.00 total=many\n"), std::nullopt);
  EXPECT_EQ(parse_pressure_total(""), std::nullopt);
}

TEST(AvailableRam, IsTheTightestLessAMargin) {
  const MachineMemory machine{32'000'000'000, 10'000'000'000};
  EXPECT_EQ(available_ram(machine, {}, 0), 9'500'000'000U);
  EXPECT_EQ(available_ram(machine, {64'000'000, 60'000'000}, 4'000'000),
            48'000'000U);
  // What the process holds is part of its budget, but the limit stays.
  EXPECT_EQ(available_ram(machine, {64'000'000, 64'000'000}, 50'000'000),
            48'000'000U);
  EXPECT_EQ(available_ram(machine, {1000, 0}, 500), 0U);
  EXPECT_EQ(available_ram({}, {}, 0), 0U);
}

TEST(ProcessMemory, GrowsWithWhatIsTouched) {
  const auto before = process_memory();
  ASSERT_TRUE(before.ok());
  std::vector<char> block(32 << 20);
  std::memset(block.data(), 1, block.size());
  const auto after = process_memory();
  ASSERT_TRUE(after.ok());
  EXPECT_GE(after->resident_bytes, before->resident_bytes + (24U << 20));
  EXPECT_GE(after->resident_peak_bytes, after->resident_bytes);
  EXPECT_EQ(block[12345], 1);
}

TEST(MachineMemory, IsPlausible) {
  const auto memory = machine_memory();
  ASSERT_TRUE(memory.ok());
  EXPECT_GT(memory->total_bytes, 100'000'000U);
  EXPECT_LE(memory->available_bytes, memory->total_bytes);
  EXPECT_LT(available_ram(), memory->total_bytes);
}

TEST(CachedFileBytes, SeesAFileThatWasJustWritten) {
  const std::string path = std::filesystem::temp_directory_path() /
                           ("memory_test_" + std::to_string(::getpid()));
  std::ofstream(path) << std::string(100'000, 'x');
  const auto cached = cached_file_bytes(path);
  ASSERT_TRUE(cached.ok()) << cached.status().message();
  EXPECT_GE(*cached, 100'000U);
  EXPECT_LT(*cached, 200'000U);
  std::filesystem::remove(path);
  EXPECT_FALSE(cached_file_bytes(path).ok());
  EXPECT_FALSE(cached_file_bytes("/").ok());
}

}  // namespace
}  // namespace mlx_flash
