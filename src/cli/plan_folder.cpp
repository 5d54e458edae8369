// SPDX-License-Identifier: MIT
#include "cli/plan_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>
#include <vector>

#include "cli/bench_disk.h"

namespace mlx_flash {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = ".mlx-flash-plan-";
constexpr auto kStaleAfter = std::chrono::hours(1);
constexpr size_t kProbeBytes = size_t{48} << 20;

void remove_stale(const fs::path& parent) {
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; it != end && !error;
       it.increment(error)) {
    if (!it->path().filename().string().starts_with(kPrefix)) continue;
    std::error_code ignored;
    const auto changed = fs::last_write_time(it->path(), ignored);
    if (!ignored && fs::file_time_type::clock::now() - changed > kStaleAfter) {
      fs::remove_all(it->path(), ignored);
    }
  }
}

// Not zeros: a disk may be quick with those.
Status write_probe(const std::string& path) {
  std::vector<uint64_t> words((size_t{1} << 20) / sizeof(uint64_t));
  std::mt19937_64 random(1);
  for (uint64_t& word : words) word = random();
  const int fd =
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  bool ok = fd >= 0;
  const size_t bytes = words.size() * sizeof(uint64_t);
  for (size_t done = 0; ok && done < kProbeBytes; done += bytes) {
    ok = ::write(fd, words.data(), bytes) == static_cast<ssize_t>(bytes);
  }
  ok = ok && ::fsync(fd) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  return ok ? Status() : io_error(path + ": " + std::strerror(error));
}

}  // namespace

Result<PlanFolder> PlanFolder::make(const std::string& parent) {
  remove_stale(parent);
  std::string path = parent + "/" + kPrefix + "XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) {
    return io_error(path +
                    ": cannot make this folder: " + std::strerror(errno));
  }
  return PlanFolder(std::move(path));
}

PlanFolder::PlanFolder(PlanFolder&& other) noexcept
    : path_(std::exchange(other.path_, std::string())) {}

PlanFolder::~PlanFolder() {
  std::error_code error;
  if (!path_.empty()) fs::remove_all(path_, error);
}

Result<double> PlanFolder::disk_speed(IoBackend io) const {
  const std::string probe = path_ + "/probe";
  FLASH_RETURN_IF_ERROR(write_probe(probe));
  auto speed = mlx_flash::disk_speed(probe, io);
  std::error_code error;
  fs::remove(probe, error);
  return speed;
}

}  // namespace mlx_flash
