// SPDX-License-Identifier: MIT
#include "cli/bench_disk.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/json.h"
#include "cli/console.h"
#include "cli/progress.h"
#include "io/disk_probe.h"

namespace mlx_flash {
namespace {

namespace fs = std::filesystem;

IoKind io_kind(IoBackend io) {
  switch (io) {
    case IoBackend::kUring:
      return IoKind::kUring;
    case IoBackend::kThreads:
      return IoKind::kThreads;
    default:
      return IoKind::kAuto;
  }
}

// Where most of the weights lie.
Result<std::string> largest_file(const std::string& model) {
  std::error_code error;
  if (!fs::is_directory(model, error)) return model;
  std::string path;
  uint64_t largest = 0;
  for (const auto& entry : fs::directory_iterator(model, error)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(".safetensors") && !name.ends_with(".gguf")) continue;
    std::error_code ignored;
    const uint64_t bytes = entry.file_size(ignored);
    if (ignored || bytes <= largest) continue;
    largest = bytes;
    path = entry.path().string();
  }
  if (path.empty()) {
    return invalid_input(model + ": no .safetensors or .gguf file to read");
  }
  return path;
}

Json to_json(const DiskProbe& probe, const std::string& path) {
  Json rows = Json::array();
  for (const DiskSpeed& s : probe.speeds) {
    rows.push_back({{"request_bytes", s.load.request_bytes},
                    {"depth", s.load.depth},
                    {"direct", s.load.direct},
                    {"bytes_per_s", s.bytes_per_s},
                    {"latency_p50_ms", s.latency_p50_s * 1e3},
                    {"latency_p99_ms", s.latency_p99_s * 1e3},
                    {"reads", s.reads}});
  }
  return {{"file", path},
          {"file_bytes", probe.file_bytes},
          {"io", probe.io},
          {"direct", probe.direct},
          {"disk_bytes_per_s", probe.bytes_per_s()},
          {"loads", std::move(rows)}};
}

std::string table(const DiskProbe& probe, const std::string& path) {
  std::string text = fmt::format(
      "{}: {:.0f} MB/s at best, by {}{}\n\n"
      "request    under way     MB/s    latency, ms: median   99%\n",
      path,
      probe.bytes_per_s() / 1e6,
      probe.io,
      probe.direct ? ", past the page cache"
                   : " (this file system has no direct reads)");
  for (const DiskSpeed& s : probe.speeds) {
    text += fmt::format("{:>4} KiB {:>12} {:>8.0f} {:>22.2f} {:>6.2f}{}\n",
                        s.load.request_bytes >> 10,
                        s.load.depth,
                        s.bytes_per_s / 1e6,
                        s.latency_p50_s * 1e3,
                        s.latency_p99_s * 1e3,
                        s.load.direct ? "" : "  through the page cache");
  }
  return text;
}

}  // namespace

Result<int> bench_disk(const BenchDiskOptions& options) {
  FLASH_ASSIGN_OR_RETURN(const std::string path, largest_file(options.model));
  Progress progress("measuring", "loads", !options.quiet);
  DiskProbeOptions probing;
  probing.io = io_kind(options.io);
  probing.progress = [&](size_t done, size_t total) {
    progress.update(done, total);
    return true;
  };
  FLASH_ASSIGN_OR_RETURN(const DiskProbe probe, probe_disk(path, probing));
  progress.clear();
  FLASH_RETURN_IF_ERROR(options.json ? write_json_line(to_json(probe, path))
                                     : write_stdout(table(probe, path)));
  return 0;
}

Result<double> disk_speed(const std::string& model, IoBackend io) {
  FLASH_ASSIGN_OR_RETURN(const std::string path, largest_file(model));
  DiskProbeOptions probing;
  probing.io = io_kind(io);
  probing.loads = {{uint32_t{1} << 20, 8, true}};
  probing.seconds_each = 0.7;
  return agreed_rate([&]() -> Result<double> {
    FLASH_ASSIGN_OR_RETURN(const DiskProbe probe, probe_disk(path, probing));
    return probe.bytes_per_s();
  });
}

}  // namespace mlx_flash
