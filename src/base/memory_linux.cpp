// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

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
  const ReadText read = [](const std::string& path) {
    auto text = read_whole_file(path, kProcBytesMax);
    return text.ok() ? std::optional(std::move(text).value()) : std::nullopt;
  };
  return read_cgroup_memory(
      parse_cgroup_folders(read("/proc/self/cgroup").value_or(""),
                           read("/proc/self/mountinfo").value_or("")),
      read);
}

Result<uint64_t> process_read_bytes() {
  return field_of("/proc/self/io", "read_bytes");
}

Result<uint64_t> cached_file_bytes(const std::string& path) {
  const auto failed = [&](const char* what) {
    return io_error(
        fmt::format("{}: {}: {}", path, what, std::strerror(errno)));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return failed("cannot open");
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return io_error(fmt::format("{}: not a regular file", path));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    ::close(fd);
    return uint64_t{0};
  }
  void* map = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  if (map == MAP_FAILED) return failed("cannot map");
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((size + page - 1) / page);
  const int rc = ::mincore(map, size, resident.data());
  const int error = errno;
  ::munmap(map, size);
  if (rc != 0) {
    errno = error;
    return failed("mincore");
  }
  const auto pages =
      std::count_if(resident.begin(), resident.end(), [](unsigned char c) {
        return (c & 1) != 0;
      });
  return static_cast<uint64_t>(pages) * page;
}

}  // namespace mlx_flash
