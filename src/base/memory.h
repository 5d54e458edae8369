// SPDX-License-Identifier: MIT
#pragma once

// How much memory this process takes, and how much it may.
//
// The parsers take the text of the files they are named after, so that they can
// be tested on recorded ones. Thread-safe. Bytes everywhere.

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mlx_flash {

struct ProcessMemory {
  uint64_t resident_bytes = 0;
  uint64_t resident_peak_bytes = 0;  // since the process began (VmHWM)
};
Result<ProcessMemory> process_memory();

// Gives memory that was freed back to the system where the allocator keeps it.
void return_free_memory();

struct MachineMemory {
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;  // without swapping, page cache given back
};
Result<MachineMemory> machine_memory();

// Limits of the control groups (v1 and v2) this process is in: the tightest of
// its own and all ancestors that can be seen. No value: no limit. Nothing of
// the kind outside Linux.
struct CgroupMemory {
  std::optional<uint64_t> limit_bytes;
  // What may still be taken, page cache that can be dropped counted as free.
  std::optional<uint64_t> room_bytes;
};
CgroupMemory cgroup_memory();

// What `--ram auto` uses: all that this process can take without harm, what it
// has already included.
uint64_t available_ram();
uint64_t available_ram(const MachineMemory& machine,
                       const CgroupMemory& cgroup,
                       uint64_t resident_bytes);

// The same without a margin: where more than this is taken, somebody suffers.
uint64_t allowed_ram(const MachineMemory& machine,
                     const CgroupMemory& cgroup,
                     uint64_t resident_bytes);

// What an automatic budget leaves of that to others.
uint64_t ram_margin(uint64_t allowed_bytes);

// Seconds that some task of this process's control group (v2) or of the machine
// waited for memory, since it began ("some total" of Linux's pressure stall
// information). Nothing where the system does not tell.
std::optional<double> memory_stall_seconds();

// Bytes of the file that lie in the page cache, in whole pages.
Result<uint64_t> cached_file_bytes(const std::string& path);

// Bytes this process had the storage deliver so far (/proc/self/io read_bytes;
// reads answered by the page cache are not in it).
Result<uint64_t> process_read_bytes();

// --- Parsers -----------------------------------------------------------------

// "<key>   123 kB" of /proc/self/status and /proc/meminfo, and "<key>: 123" of
// /proc/self/io. In bytes.
std::optional<uint64_t> parse_proc_field(std::string_view text,
                                         std::string_view key);

// "<key> 123" of a cgroup's memory.stat.
std::optional<uint64_t> parse_stat_field(std::string_view text,
                                         std::string_view key);

// A file of one number. Nothing for "max", for v1's way of saying so (a number
// of 2^60 and more), and for what is no number.
std::optional<uint64_t> parse_cgroup_limit(std::string_view text);

// "some ... total=123" (microseconds) of a pressure file, in seconds.
std::optional<double> parse_pressure_total(std::string_view text);

// A folder with the files of a control group, from the process's own
// group up to the root of the mount, and which version it is.
struct CgroupFolders {
  bool v2 = false;
  std::vector<std::string> folders;
};
// Of the hierarchies that have `controller`, from /proc/self/cgroup and
// /proc/self/mountinfo. Both versions may be there.
std::vector<CgroupFolders> parse_cgroup_folders(
    std::string_view cgroup,
    std::string_view mountinfo,
    std::string_view controller = "memory");

// `read`: the text of a file, nothing if it cannot be read.
using ReadText =
    std::function<std::optional<std::string>(const std::string& path)>;
CgroupMemory read_cgroup_memory(const std::vector<CgroupFolders>& hierarchies,
                                const ReadText& read);

}  // namespace mlx_flash
