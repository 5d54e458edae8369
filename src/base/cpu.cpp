// SPDX-License-Identifier: MIT
#include "base/cpu.h"

#include <algorithm>
#include <sstream>
#include <thread>

#include "base/read_file.h"
#ifdef __linux__
#include <sched.h>
#endif

namespace mlx_flash {
namespace {

constexpr size_t kProcBytesMax = size_t{4} << 20;

// "quota period" in microseconds; nothing for "max ..." and v1's -1.
std::optional<double> parse_quota(const std::string& text) {
  std::istringstream in(text);
  double quota = 0;
  double period = 0;
  if (!(in >> quota >> period) || quota <= 0 || period <= 0) {
    return std::nullopt;
  }
  return quota / period;
}

int allowed_cpus() {
#ifdef __linux__
  cpu_set_t set;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

std::optional<double> read_cgroup_cpus(
    const std::vector<CgroupFolders>& hierarchies, const ReadText& read) {
  std::optional<double> least;
  for (const CgroupFolders& hierarchy : hierarchies) {
    for (const std::string& folder : hierarchy.folders) {
      const auto text = [&](const char* name) {
        return read(folder + "/" + name).value_or("");
      };
      const auto cpus =
          parse_quota(hierarchy.v2 ? text("cpu.max")
                                   : text("cpu.cfs_quota_us") + " " +
                                         text("cpu.cfs_period_us"));
      if (cpus && (!least || *cpus < *least)) least = cpus;
    }
  }
  return least;
}

int usable_cpus() {
  const ReadText read = [](const std::string& path) {
    auto text = read_whole_file(path, kProcBytesMax);
    return text.ok() ? std::optional(std::move(text).value()) : std::nullopt;
  };
  int cpus = std::max(1, allowed_cpus());
  const auto quota = read_cgroup_cpus(
      parse_cgroup_folders(read("/proc/self/cgroup").value_or(""),
                           read("/proc/self/mountinfo").value_or(""),
                           "cpu"),
      read);
  if (quota && *quota < cpus) cpus = std::max(1, static_cast<int>(*quota));
  return cpus;
}

}  // namespace mlx_flash
