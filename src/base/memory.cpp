// SPDX-License-Identifier: MIT
// What is the same on every system: the parsers and the arithmetic.

#include "base/memory.h"

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kUnlimited = uint64_t{1} << 60;

// Margin of --ram auto: the rest of the system must be able to breathe.
constexpr uint64_t kMarginMin = 16'000'000;
constexpr uint64_t kMarginMax = 1'000'000'000;

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

// The first part of `text` up to `separator`, which is taken off too.
std::string_view take_until(std::string_view& text, char separator) {
  const size_t end = text.find(separator);
  const std::string_view part = text.substr(0, end);
  text =
      end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  return part;
}

// The number at the start of `text`; what follows it is left in `text`.
std::optional<uint64_t> take_number(std::string_view& text) {
  text = trim(text);
  uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

// Mount points write blanks as \040 and so on.
std::string unescape(std::string_view text) {
  std::string out;
  const auto octal = [](char c) { return c >= '0' && c <= '7'; };
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && octal(text[i + 1]) &&
        octal(text[i + 2]) && octal(text[i + 3])) {
      const int code = (text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                       (text[i + 3] - '0');
      out += static_cast<char>(code);
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

bool has_word(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    if (take_until(list, ',') == word) return true;
  }
  return false;
}

struct Mount {
  std::string root;   // what of the hierarchy is mounted
  std::string point;  // where
};

// "36 35 98:0 /root /mnt/point rw,noatime shared:1 - cgroup2 source options"
std::optional<Mount> parse_mount(std::string_view line,
                                 bool v2,
                                 std::string_view controller) {
  const size_t dash = line.find(" - ");
  if (dash == std::string_view::npos) return std::nullopt;
  std::string_view tail = line.substr(dash + 3);
  const std::string_view type = take_until(tail, ' ');
  take_until(tail, ' ');
  const bool wanted = v2 ? type == "cgroup2"
                         : type == "cgroup" && has_word(trim(tail), controller);
  if (!wanted) return std::nullopt;
  std::string_view head = line.substr(0, dash);
  for (int i = 0; i < 3; ++i) take_until(head, ' ');
  Mount mount;
  mount.root = unescape(take_until(head, ' '));
  mount.point = unescape(take_until(head, ' '));
  if (mount.point.empty()) return std::nullopt;
  return mount;
}

std::optional<Mount> find_mount(std::string_view mountinfo,
                                bool v2,
                                std::string_view controller) {
  while (!mountinfo.empty()) {
    const std::string_view line = take_until(mountinfo, '\n');
    if (auto mount = parse_mount(line, v2, controller)) return mount;
  }
  return std::nullopt;
}

// The group's folder and its ancestors' under the mount point. A path outside
// of what is mounted (a container that sees its host's path) leaves the mount
// point itself.
std::vector<std::string> folders_of(const Mount& mount, std::string_view path) {
  std::string_view inner = path;
  if (mount.root != "/") {
    const bool inside =
        path.starts_with(mount.root) &&
        (path.size() == mount.root.size() || path[mount.root.size()] == '/');
    inner = inside ? path.substr(mount.root.size()) : std::string_view();
  }
  std::string point = mount.point;
  while (point.size() > 1 && point.back() == '/') point.pop_back();
  std::vector<std::string> folders;
  while (!inner.empty() && inner != "/") {
    // A path that leads upwards is not a group below this mount.
    if (inner.find("/..") == std::string_view::npos) {
      folders.push_back(point + std::string(inner));
    }
    inner = inner.substr(0, inner.rfind('/'));
  }
  folders.push_back(point);
  return folders;
}

void take_min(std::optional<uint64_t>& least, std::optional<uint64_t> value) {
  if (value && (!least || *value < *least)) least = value;
}

// Names of the files of one version.
struct Version {
  std::vector<std::string_view> limits;
  std::string_view usage;
  std::vector<std::string_view> cache;  // fields of memory.stat
};

void read_folder(const std::string& folder,
                 const Version& names,
                 const ReadText& read,
                 CgroupMemory& memory) {
  const auto text = [&](std::string_view name) {
    return read(folder + "/" + std::string(name)).value_or("");
  };
  const std::string stat = text("memory.stat");
  std::optional<uint64_t> limit;
  for (const std::string_view name : names.limits) {
    take_min(limit, parse_cgroup_limit(text(name)));
  }
  if (!limit) return;
  take_min(memory.limit_bytes, limit);
  uint64_t used = parse_cgroup_limit(text(names.usage)).value_or(0);
  for (const std::string_view field : names.cache) {
    used -= std::min(used, parse_stat_field(stat, field).value_or(0));
  }
  take_min(memory.room_bytes, *limit - std::min(*limit, used));
}

}  // namespace

std::optional<uint64_t> parse_proc_field(std::string_view text,
                                         std::string_view key) {
  while (!text.empty()) {
    std::string_view line = take_until(text, '\n');
    if (trim(take_until(line, ':')) != key) continue;
    const auto value = take_number(line);
    if (!value) return std::nullopt;
    if (trim(line) != "kB") return value;
    if (*value >= kUnlimited / 1024) return std::nullopt;
    return *value * 1024;
  }
  return std::nullopt;
}

std::optional<uint64_t> parse_stat_field(std::string_view text,
                                         std::string_view key) {
  while (!text.empty()) {
    std::string_view line = take_until(text, '\n');
    if (take_until(line, ' ') == key) return take_number(line);
  }
  return std::nullopt;
}

std::optional<double> parse_pressure_total(std::string_view text) {
  while (!text.empty()) {
    std::string_view line = take_until(text, '\n');
    if (take_until(line, ' ') != "some") continue;
    while (!line.empty()) {
      std::string_view word = take_until(line, ' ');
      if (take_until(word, '=') != "total") continue;
      const auto micros = take_number(word);
      if (micros) return static_cast<double>(*micros) * 1e-6;
    }
  }
  return std::nullopt;
}

std::optional<uint64_t> parse_cgroup_limit(std::string_view text) {
  const auto value = take_number(text);
  if (!value || !trim(text).empty() || *value >= kUnlimited) {
    return std::nullopt;
  }
  return value;
}

std::vector<CgroupFolders> parse_cgroup_folders(std::string_view cgroup,
                                                std::string_view mountinfo,
                                                std::string_view controller) {
  std::vector<CgroupFolders> found;
  while (!cgroup.empty()) {
    // "hierarchy:controllers:path", "0::path" for v2.
    std::string_view path = take_until(cgroup, '\n');
    const std::string_view hierarchy = take_until(path, ':');
    const std::string_view controllers = take_until(path, ':');
    const bool v2 = hierarchy == "0" && controllers.empty();
    if (!path.starts_with('/')) continue;
    if (!v2 && !has_word(controllers, controller)) continue;
    if (const auto mount = find_mount(mountinfo, v2, controller)) {
      found.push_back({v2, folders_of(*mount, path)});
    }
  }
  return found;
}

CgroupMemory read_cgroup_memory(const std::vector<CgroupFolders>& hierarchies,
                                const ReadText& read) {
  const Version v1 = {{"memory.limit_in_bytes", "memory.soft_limit_in_bytes"},
                      "memory.usage_in_bytes",
                      {"total_inactive_file", "total_active_file"}};
  // Above memory.high the kernel slows the group down until it stands still;
  // v1's soft limit is where it takes from first.
  const Version v2 = {{"memory.max", "memory.high"},
                      "memory.current",
                      {"inactive_file", "active_file"}};
  CgroupMemory memory;
  for (const CgroupFolders& hierarchy : hierarchies) {
    for (const std::string& folder : hierarchy.folders) {
      read_folder(folder, hierarchy.v2 ? v2 : v1, read, memory);
    }
    if (hierarchy.v2 || hierarchy.folders.empty()) continue;
    // Ancestors that this mount does not show.
    const auto stat = read(hierarchy.folders.front() + "/memory.stat");
    auto limit =
        parse_stat_field(stat.value_or(""), "hierarchical_memory_limit");
    if (limit && *limit < kUnlimited) {
      take_min(memory.limit_bytes, limit);
      take_min(memory.room_bytes, limit);
    }
  }
  return memory;
}

uint64_t allowed_ram(const MachineMemory& machine,
                     const CgroupMemory& cgroup,
                     uint64_t resident_bytes) {
  uint64_t free = machine.available_bytes;
  if (cgroup.room_bytes) free = std::min(free, *cgroup.room_bytes);
  // The budget is of the whole process, and what it holds is taken already.
  uint64_t whole = free + std::min(resident_bytes, kUnlimited);
  if (cgroup.limit_bytes) whole = std::min(whole, *cgroup.limit_bytes);
  return whole;
}

uint64_t ram_margin(uint64_t allowed_bytes) {
  return std::min(allowed_bytes,
                  std::clamp(allowed_bytes / 20, kMarginMin, kMarginMax));
}

uint64_t available_ram(const MachineMemory& machine,
                       const CgroupMemory& cgroup,
                       uint64_t resident_bytes) {
  const uint64_t whole = allowed_ram(machine, cgroup, resident_bytes);
  return whole - ram_margin(whole);
}

uint64_t available_ram() {
  const auto machine = machine_memory();
  const auto process = process_memory();
  return available_ram(machine.ok() ? *machine : MachineMemory{},
                       cgroup_memory(),
                       process.ok() ? process->resident_bytes : 0);
}

}  // namespace mlx_flash
