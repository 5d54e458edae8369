// SPDX-License-Identifier: MIT
#include "hub/cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/log.h"
#include "base/read_file.h"
#include "hub/names.h"

namespace mlx_flash::hub {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kLockMode = 0664;  // for users that share a cache
constexpr const char* kTag =
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# A cache of models from a hub: backups may leave it out.\n"
    "# See https://bford.info/cachedir/\n";

Status failed(const std::string& path, const char* what, int error) {
  const std::string text =
      fmt::format("{}: cannot {}: {}", path, what, std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? exhausted(text) : io_error(text);
}

Status make_folders(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  return error ? failed(folder.string(), "make this folder", error.value())
               : Status();
}

// Replaces `path` in one step, so that no reader sees half of it.
Status write_small(const std::string& path, std::string_view text) {
  const std::string temporary = fmt::format("{}.{}.tmp", path, ::getpid());
  const int fd =
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return failed(temporary, "write", errno);
  const ssize_t written = ::write(fd, text.data(), text.size());
  const int error = written < 0 ? errno : ENOSPC;
  ::close(fd);
  if (written != static_cast<ssize_t>(text.size())) {
    ::unlink(temporary.c_str());
    return failed(temporary, "write", error);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int why = errno;
    ::unlink(temporary.c_str());
    return failed(path, "write", why);
  }
  return Status();
}

bool sized(const std::string& path, uint64_t size) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
         static_cast<uint64_t>(info.st_size) == size;
}

}  // namespace

FileLock::FileLock(FileLock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileLock::~FileLock() {
  // The file stays: removing it would split those who wait for it.
  if (fd_ >= 0) ::close(fd_);
}

Result<FileLock> FileLock::try_lock(const std::string& path) {
  const int fd = ::open(
      path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kLockMode);
  if (fd < 0) return failed(path, "open this lock", errno);
  FileLock lock;
  int error = 0;
  do {
    error = ::flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == EWOULDBLOCK || error == EACCES) {
    ::close(fd);
    return lock;
  }
  // Some programs remove their lock files: what is locked must be what the
  // next one will find.
  struct stat ours {};
  struct stat named {};
  if (::fstat(fd, &ours) != 0 || ::stat(path.c_str(), &named) != 0 ||
      ours.st_ino != named.st_ino || ours.st_dev != named.st_dev) {
    ::close(fd);
    return lock;
  }
  lock.fd_ = fd;
  if (error != 0) {
    // Harmless: writers of one blob write the same bytes to the same places,
    // and what they wrote is checked.
    log_warning(fmt::format(
        "{}: this file system has no locks ({})", path, std::strerror(error)));
  }
  return lock;
}

RepoCache::RepoCache(std::string cache, const std::string& id, bool symlinks)
    : cache_(std::move(cache)),
      name_(repo_folder_name(id)),
      folder_(cache_ + "/" + name_),
      symlinks_(symlinks) {}

std::string RepoCache::snapshot(const std::string& commit) const {
  return folder_ + "/snapshots/" + commit;
}

std::string RepoCache::pointer(const std::string& commit,
                               const std::string& name) const {
  return snapshot(commit) + "/" + name;
}

std::string RepoCache::blob(const std::string& etag) const {
  return folder_ + "/blobs/" + etag;
}

std::string RepoCache::locks_folder() const {
  return cache_ + "/.locks/" + name_;
}

std::string RepoCache::lock_path(const std::string& etag) const {
  return locks_folder() + "/" + etag + ".lock";
}

Status RepoCache::prepare() const {
  FLASH_RETURN_IF_ERROR(make_folders(folder_ + "/blobs"));
  FLASH_RETURN_IF_ERROR(make_folders(folder_ + "/snapshots"));
  FLASH_RETURN_IF_ERROR(make_folders(folder_ + "/refs"));
  FLASH_RETURN_IF_ERROR(make_folders(locks_folder()));
  const std::string tag = cache_ + "/CACHEDIR.TAG";
  std::error_code error;
  if (!fs::exists(tag, error)) {
    const Status tagged = write_small(tag, kTag);
    if (!tagged.ok()) log_debug(tagged.message());
  }
  return Status();
}

std::string RepoCache::commit_of(const std::string& revision) const {
  if (is_commit(revision)) return revision;
  const auto text = read_whole_file(folder_ + "/refs/" + revision, 64);
  if (!text.ok()) return {};
  std::string commit = *text;
  while (!commit.empty() && (commit.back() == '\n' || commit.back() == ' ')) {
    commit.pop_back();
  }
  // Other tools' tests, and forks of the hub, have shorter ones.
  const bool sound = commit.size() <= 64 &&
                     std::all_of(commit.begin(), commit.end(), [](char c) {
                       return std::isalnum(static_cast<unsigned char>(c)) != 0;
                     });
  return sound ? commit : std::string();
}

Status RepoCache::set_ref(const std::string& revision,
                          const std::string& commit) const {
  if (revision == commit || commit_of(revision) == commit) return Status();
  const fs::path path = fs::path(folder_) / "refs" / revision;
  FLASH_RETURN_IF_ERROR(make_folders(path.parent_path()));
  return write_small(path.string(), commit);
}

bool RepoCache::has(const std::string& commit,
                    const std::string& name,
                    uint64_t size) const {
  return sized(pointer(commit, name), size);
}

bool RepoCache::has_blob(const std::string& etag, uint64_t size) const {
  return sized(blob(etag), size);
}

Status RepoCache::point(const std::string& commit,
                        const std::string& name,
                        const std::string& etag,
                        bool fresh) const {
  const fs::path link = pointer(commit, name);
  FLASH_RETURN_IF_ERROR(make_folders(link.parent_path()));
  const fs::path from = fs::path(folder_) / "blobs" / etag;
  // From the folder of the link, in the cache's own words: "../../blobs/ETAG".
  const fs::path relative = from.lexically_relative(link.parent_path());
  const fs::path temporary =
      fmt::format("{}.{}.tmp", link.string(), ::getpid());
  std::error_code error;
  fs::remove(temporary, error);
  if (symlinks_ && ::symlink(relative.c_str(), temporary.c_str()) == 0) {
    if (::rename(temporary.c_str(), link.c_str()) == 0) return Status();
    const int why = errno;
    ::unlink(temporary.c_str());
    return failed(link.string(), "make this link", why);
  }
  if (fresh) {
    fs::rename(from, link, error);
  } else {
    // On the way to its name under another one: a copy takes time.
    fs::copy_file(from, temporary, error);
    if (!error) fs::rename(temporary, link, error);
  }
  return error ? failed(link.string(), "write", error.value()) : Status();
}

void RepoCache::mark_missing(const std::string& commit,
                             const std::string& name) const {
  const fs::path path = fs::path(folder_) / ".no_exist" / commit / name;
  if (!make_folders(path.parent_path()).ok()) return;
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd >= 0) ::close(fd);
}

Result<uint64_t> RepoCache::free_bytes() const {
  struct statvfs info {};
  if (::statvfs(folder_.c_str(), &info) != 0) {
    return failed(folder_, "ask for free space", errno);
  }
  return uint64_t{info.f_bavail} * uint64_t{info.f_frsize};
}

void mark_used(const std::string& file) {
  timespec times[2] = {};
  times[0].tv_nsec = UTIME_NOW;
  times[1].tv_nsec = UTIME_OMIT;  // the content did not change
  if (::utimensat(AT_FDCWD, file.c_str(), times, 0) != 0) {
    log_debug(fmt::format("{}: its access time stays", file));
  }
}

}  // namespace mlx_flash::hub
