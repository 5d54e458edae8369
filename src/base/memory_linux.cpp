// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>

#include "base/memory.h"
#include "base/read_file.h"

namespace mlx_flash {
namespace {

constexpr size_t kProcBytesMax = size_t{4} << 20;

Result<uint64_t> field_of(const std::string& path, std::string_view key) {
  FLASH_ASSIGN_OR_RETURN(const std::string text,
                         read_whole_file(path, kProcBytesMax));
  const auto value = parse_proc_field(text, key);
  if (!value) return io_error(fmt::format("{}: no {}", path, key));
  return *value;
}

std::optional<std::string> read_text(const std::string& path) {
  auto text = read_whole_file(path, kProcBytesMax);
  return text.ok() ? std::optional(std::move(text).value()) : std::nullopt;
}

std::vector<CgroupFolders> cgroup_folders() {
  return parse_cgroup_folders(read_text("/proc/self/cgroup").value_or(""),
                              read_text("/proc/self/mountinfo").value_or(""));
}

}  // namespace

Result<ProcessMemory> process_memory() {
  constexpr const char* kPath = "/proc/self/status";
  FLASH_ASSIGN_OR_RETURN(const std::string text,
                         read_whole_file(kPath, kProcBytesMax));
  const auto now = parse_proc_field(text, "VmRSS");
  const auto peak = parse_proc_field(text, "VmHWM");
  if (!now || !peak) return io_error(fmt::format("{}: no VmRSS", kPath));
  // The kernel sums per-thread counters lazily: the two may cross.
  return ProcessMemory{*now, std::max(*now, *peak)};
}

void return_free_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

Result<MachineMemory> machine_memory() {
  constexpr const char* kPath = "/proc/meminfo";
  FLASH_ASSIGN_OR_RETURN(const std::string text,
                         read_whole_file(kPath, kProcBytesMax));
  const auto total = parse_proc_field(text, "MemTotal");
  const auto available = parse_proc_field(text, "MemAvailable");
  if (!total || !available) {
    return io_error(fmt::format("{}: no MemAvailable", kPath));
  }
  return MachineMemory{*total, *available};
}

CgroupMemory cgroup_memory() {
  return read_cgroup_memory(cgroup_folders(), read_text);
}

std::optional<double> memory_stall_seconds() {
  for (const CgroupFolders& hierarchy : cgroup_folders()) {
    if (!hierarchy.v2 || hierarchy.folders.empty()) continue;
    const auto own = read_text(hierarchy.folders.front() + "/memory.pressure");
    if (const auto seconds = parse_pressure_total(own.value_or(""))) {
      return seconds;
    }
  }
  return parse_pressure_total(read_text("/proc/pressure/memory").value_or(""));
}

Result<uint64_t> process_read_bytes() {
  return field_of("/proc/self/io", "read_bytes");
}

}  // namespace mlx_flash
