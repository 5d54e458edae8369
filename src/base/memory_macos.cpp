// SPDX-License-Identifier: MIT
#include <libproc.h>
#include <mach/mach.h>
#include <malloc/malloc.h>
#include <sys/resource.h>
#include <sys/sysctl.h>
#include <unistd.h>

#include <algorithm>

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

void return_free_memory() {
  ::malloc_zone_pressure_relief(nullptr, 0);
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

std::optional<double> memory_stall_seconds() {
  return std::nullopt;
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

}  // namespace mlx_flash
