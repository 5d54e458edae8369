// SPDX-License-Identifier: MIT
#include "kv/kv_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/vfs.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

namespace mlx_flash {
namespace {

constexpr std::string_view kPrefix = "mlx-flash-kv-";
constexpr const char* kFileName = "blocks";

class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) (void)::close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }
  int take() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// Files there would be memory, which is what we are short of.
bool lies_in_memory([[maybe_unused]] const std::string& folder) {
#if defined(__linux__)
  struct statfs s = {};
  if (::statfs(folder.c_str(), &s) != 0) return false;
  constexpr auto kTmpfs = 0x01021994;
  constexpr auto kRamfs = 0x858458f6;
  return s.f_type == static_cast<decltype(s.f_type)>(kTmpfs) ||
         s.f_type == static_cast<decltype(s.f_type)>(kRamfs);
#else
  return false;
#endif
}

Result<std::string> temporary_folder() {
  std::vector<std::string> candidates;
  if (const char* named = std::getenv("TMPDIR")) candidates.emplace_back(named);
  candidates.insert(candidates.end(), {"/tmp", "/var/tmp"});
  for (const std::string& folder : candidates) {
    if (folder.empty() || ::access(folder.c_str(), W_OK | X_OK) != 0) continue;
    if (!lies_in_memory(folder)) return folder;
  }
  return invalid_input(
      "no temporary folder on a disk for the KV cache: name one with --kv-dir");
}

Status bad_folder(const std::string& folder, const std::string& why) {
  return invalid_input(fmt::format("--kv-dir {}: {}", folder, why));
}

Status check_folder(const std::string& folder, int fd) {
  struct stat s = {};
  if (::fstat(fd, &s) != 0) return bad_folder(folder, std::strerror(errno));
  const bool strangers = (s.st_mode & (S_IWGRP | S_IWOTH)) != 0;
  if (strangers && (s.st_mode & S_ISVTX) == 0) {
    return bad_folder(folder,
                      "others may write to it and take our files away: chmod "
                      "go-w, or take another folder");
  }
  return Status();
}

// The private folder: made, ours alone, locked. -1: taken away meanwhile.
Result<int> make_folder(const std::string& parent,
                        int parent_fd,
                        std::string& name) {
  static_assert(sizeof(pid_t) <= sizeof(long));
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  name = fmt::format("{}{}-{:x}", kPrefix, ::getpid(), now);
  if (::mkdirat(parent_fd, name.c_str(), 0700) != 0) {
    if (errno == EEXIST) return -1;
    return bad_folder(
        parent, fmt::format("cannot make a folder: {}", std::strerror(errno)));
  }
  Fd fd(::openat(parent_fd,
                 name.c_str(),
                 O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat s = {};
  if (fd.get() < 0 || ::fstat(fd.get(), &s) != 0) return -1;
  if (s.st_uid != ::geteuid() || (s.st_mode & 077) != 0) {
    return bad_folder(parent, "a folder made there is not ours alone");
  }
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return -1;
  return fd.take();
}

}  // namespace

size_t remove_dead_folders(int folder_fd) {
  const int copy = ::openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return 0;
  DIR* list = ::fdopendir(copy);
  if (list == nullptr) {
    (void)::close(copy);
    return 0;
  }
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(list)) {
    if (std::string_view(entry->d_name).starts_with(kPrefix)) {
      names.emplace_back(entry->d_name);
    }
  }
  (void)::closedir(list);
  size_t removed = 0;
  for (const std::string& name : names) {
    const Fd fd(::openat(folder_fd,
                         name.c_str(),
                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    struct stat s = {};
    if (fd.get() < 0 || ::fstat(fd.get(), &s) != 0) continue;
    // A living process holds the lock.
    if (s.st_uid != ::geteuid()) continue;
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) continue;
    (void)::unlinkat(fd.get(), kFileName, 0);
    if (::unlinkat(folder_fd, name.c_str(), AT_REMOVEDIR) == 0) ++removed;
  }
  return removed;
}

Result<PrivateFile> make_private_file(const std::string& folder) {
  std::string parent = folder;
  if (parent.empty()) {
    FLASH_ASSIGN_OR_RETURN(parent, temporary_folder());
  } else if (::mkdir(parent.c_str(), 0700) != 0 && errno != EEXIST) {
    return bad_folder(parent, std::strerror(errno));
  }
  int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  if (!folder.empty()) flags |= O_NOFOLLOW;
  const Fd parent_fd(::open(parent.c_str(), flags));
  if (parent_fd.get() < 0) {
    return bad_folder(parent,
                      errno == ELOOP || errno == ENOTDIR
                          ? "not a folder, or a link to one: name it itself"
                          : std::strerror(errno));
  }
  FLASH_RETURN_IF_ERROR(check_folder(parent, parent_fd.get()));
  (void)remove_dead_folders(parent_fd.get());
  // Another process that cleans up may take an empty folder for a dead one's
  // before it is locked.
  for (int attempt = 0; attempt < 100; ++attempt) {
    std::string name;
    FLASH_ASSIGN_OR_RETURN(const int made,
                           make_folder(parent, parent_fd.get(), name));
    if (made < 0) continue;
    const Fd own(made);
    Fd file(::openat(own.get(),
                     kFileName,
                     O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
                     0600));
    if (file.get() < 0 && errno == ENOENT) continue;
    if (file.get() < 0) return bad_folder(parent, std::strerror(errno));
    auto reader = File::open(fmt::format("{}/{}/{}", parent, name, kFileName),
                             File::Mode::kDirect);
    (void)::unlinkat(own.get(), kFileName, 0);
    (void)::unlinkat(parent_fd.get(), name.c_str(), AT_REMOVEDIR);
    if (!reader.ok()) return reader.status();
#if defined(O_DIRECT)
    if (reader->direct()) {
      (void)::fcntl(file.get(), F_SETFL, O_DIRECT);
    }
#endif
    return PrivateFile{file.take(), std::move(reader).value()};
  }
  return bad_folder(parent, "a private folder there is taken away each time");
}

}  // namespace mlx_flash
