// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <fmt/format.h>
#include <libproc.h>
#include <mach/mach.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/memory.h"

namespace mlx_flash {

Result<ProcessMemory> process_memory() {
  mach_task_basic_info info{};
  mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
  if (::task_info(mach_task_self(),
                  MACH_TASK_BASIC_INFO,
                  reinterpret_cast<task_info_t>(&info),
                  &count) != KERN_SUCCESS) {
    return io_error("task_info failed");
  }
  return ProcessMemory{info.resident_size, info.resident_size_max};
}

Result<MachineMemory> machine_memory() {
  uint64_t total = 0;
  size_t total_size = sizeof(total);
  if (::sysctlbyname("hw.memsize", &total, &total_size, nullptr, 0) != 0) {
    return io_error("sysctl hw.memsize failed");
  }
  const mach_port_t host = ::mach_host_self();
  vm_statistics64_data_t stats{};
  mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
  vm_size_t page = 0;
  const bool ok = ::host_page_size(host, &page) == KERN_SUCCESS &&
                  ::host_statistics64(host,
                                      HOST_VM_INFO64,
                                      reinterpret_cast<host_info64_t>(&stats),
                                      &count) == KERN_SUCCESS;
  ::mach_port_deallocate(mach_task_self(), host);
  if (!ok) return io_error("host_statistics64 failed");
  // Free, and what the kernel can drop: file pages, purgeable memory. The free
  // count includes the speculative pages.
  const uint64_t pages = uint64_t{stats.free_count} +
                         uint64_t{stats.external_page_count} +
                         uint64_t{stats.purgeable_count};
  return MachineMemory{total, std::min<uint64_t>(total, pages * page)};
}

CgroupMemory cgroup_memory() {
  return {};
}

Result<uint64_t> process_read_bytes() {
  rusage_info_v2 usage{};
  if (::proc_pid_rusage(::getpid(),
                        RUSAGE_INFO_V2,
                        reinterpret_cast<rusage_info_t*>(&usage)) != 0) {
    return io_error("proc_pid_rusage failed");
  }
  return usage.ri_diskio_bytesread;
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
  std::vector<char> resident((size + page - 1) / page);
  const int rc = ::mincore(map, size, resident.data());
  const int error = errno;
  ::munmap(map, size);
  if (rc != 0) {
    errno = error;
    return failed("mincore");
  }
  const auto pages =
      std::count_if(resident.begin(), resident.end(), [](char c) {
        return (c & MINCORE_INCORE) != 0;
      });
  return static_cast<uint64_t>(pages) * page;
}

}  // namespace mlx_flash
