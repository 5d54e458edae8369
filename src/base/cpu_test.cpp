// SPDX-License-Identifier: MIT
#include "base/cpu.h"

#include <gtest/gtest.h>

#include <map>
#include <thread>

namespace mlx_flash {
namespace {

ReadText reader(std::map<std::string, std::string> files) {
  return [files = std::move(files)](const std::string& path) {
    const auto found = files.find(path);
    return found == files.end() ? std::nullopt : std::optional(found->second);
  };
}

TEST(CgroupCpus, TheTightestQuotaOfAGroupAndItsAncestorsCounts) {
  const std::vector<CgroupFolders> v2 = {{true, {"/c/a/b", "/c/a", "/c"}}};
  EXPECT_EQ(read_cgroup_cpus(v2,
                             reader({{"/c/a/b/cpu.max", "max 100000\n"},
                                     {"/c/a/cpu.max", "150000 100000\n"},
                                     {"/c/cpu.max", "400000 100000\n"}})),
            1.5);
  EXPECT_EQ(read_cgroup_cpus(v2, reader({{"/c/a/cpu.max", "max 100000\n"}})),
            std::nullopt);
  EXPECT_EQ(read_cgroup_cpus(v2, reader({})), std::nullopt);
  EXPECT_EQ(read_cgroup_cpus(v2, reader({{"/c/cpu.max", "what\n"}})),
            std::nullopt);
}

TEST(CgroupCpus, VersionOneHasTwoFilesAndMinusOneForNone) {
  const std::vector<CgroupFolders> v1 = {{false, {"/c/a"}}};
  EXPECT_EQ(read_cgroup_cpus(v1,
                             reader({{"/c/a/cpu.cfs_quota_us", "50000\n"},
                                     {"/c/a/cpu.cfs_period_us", "100000\n"}})),
            0.5);
  EXPECT_EQ(read_cgroup_cpus(v1,
                             reader({{"/c/a/cpu.cfs_quota_us", "-1\n"},
                                     {"/c/a/cpu.cfs_period_us", "100000\n"}})),
            std::nullopt);
}

TEST(CgroupCpus, FoldersAreThoseOfTheCpuController) {
  const auto found = parse_cgroup_folders(
      "4:memory:/m\n3:cpu,cpuacct:/c\n",
      "31 30 0:1 / /sys/memory rw - cgroup cgroup rw,memory\n"
      "32 30 0:2 / /sys/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
      "cpu");
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].folders.front(), "/sys/cpu/c");
}

TEST(UsableCpus, AreSomeAndNoMoreThanTheMachineHas) {
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_LE(usable_cpus(),
            std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
}

}  // namespace
}  // namespace mlx_flash
