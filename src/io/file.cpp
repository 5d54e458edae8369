// SPDX-License-Identifier: MIT
#include "io/file.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "io/aligned_buffer.h"

namespace mlx_flash {
namespace {

constexpr size_t kAlignmentDefault = 4096;
constexpr size_t kAlignmentMax = size_t{1} << 20;
constexpr size_t kBounceBytes = size_t{256} << 10;
constexpr int kRetriesMax = 3;         // of EIO
constexpr int kInterruptionsMax = 64;  // of EINTR, EAGAIN

std::string error_text(int error) {
  return std::strerror(error);
}

int64_t modified_ns(const struct stat& s) {
#if defined(__APPLE__)
  const auto& t = s.st_mtimespec;
#else
  const auto& t = s.st_mtim;
#endif
  return static_cast<int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void say_buffered_once(const std::string& path) {
  static std::atomic_flag said = ATOMIC_FLAG_INIT;
  if (said.test_and_set()) return;
  log_info(
      fmt::format("the file system of {} has no direct I/O: reading through "
                  "the page cache and dropping what was read",
                  path));
}

// What direct reads of the file must be multiples of; 0 if it has none.
size_t direct_alignment([[maybe_unused]] int fd) {
#if defined(__linux__) && defined(STATX_DIOALIGN)
  struct statx s = {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &s) == 0 &&
      (s.stx_mask & STATX_DIOALIGN) != 0) {
    if (s.stx_dio_offset_align == 0) return 0;
    const size_t a =
        std::max<size_t>(s.stx_dio_mem_align, s.stx_dio_offset_align);
    const bool usable = a >= 1 && a <= kAlignmentMax && (a & (a - 1)) == 0;
    return usable ? std::max<size_t>(a, 512) : 0;
  }
#endif
  return kAlignmentDefault;
}

// Some file systems accept the flag and refuse the reads.
bool direct_read_works(int fd, size_t alignment) {
  AlignedBuffer block(alignment, alignment);
  ssize_t n = 0;
  do {
    n = ::pread(fd, block.data(), alignment, 0);
  } while (n < 0 && errno == EINTR);
  return n >= 0 || errno != EINVAL;
}

// Turns direct I/O on for an open descriptor; returns the alignment, 0 if the
// file system refuses.
size_t enter_direct(int fd) {
#if defined(__APPLE__)
  return ::fcntl(fd, F_NOCACHE, 1) == 0 ? kAlignmentDefault : 0;
#elif defined(O_DIRECT)
  const size_t alignment = direct_alignment(fd);
  if (alignment == 0) return 0;
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) return 0;
  if (direct_read_works(fd, alignment)) return alignment;
  if (alignment < kAlignmentDefault &&
      direct_read_works(fd, kAlignmentDefault)) {
    return kAlignmentDefault;
  }
  (void)::fcntl(fd, F_SETFL, flags);
  return 0;
#else
  return 0;
#endif
}

// One pread that got `want` bytes, or fewer at the end of the file. Returns
// -errno once retries are used up.
ssize_t pread_retrying(int fd, std::byte* out, size_t want, uint64_t offset) {
  int failures = 0;
  int interruptions = 0;
  for (;;) {
    const ssize_t n = ::pread(fd, out, want, static_cast<off_t>(offset));
    if (n >= 0) return n;
    const int error = errno;
    if (error == EINTR || error == EAGAIN) {
      if (++interruptions > kInterruptionsMax) return -error;
    } else if (error != EIO || ++failures > kRetriesMax) {
      return -error;
    }
  }
}

}  // namespace

Result<File> File::open(const std::string& path, Mode mode) {
  // O_NONBLOCK: opening a FIFO must not hang; it is refused just below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return invalid_input(
        fmt::format("{}: cannot open: {}", path, error_text(errno)));
  }
  File file;
  file.fd_ = fd;
  file.path_ = path;
  struct stat s = {};
  if (::fstat(fd, &s) != 0) {
    return io_error(
        fmt::format("{}: cannot stat: {}", path, error_text(errno)));
  }
  if (!S_ISREG(s.st_mode)) {
    return invalid_input(fmt::format("{}: not a regular file", path));
  }
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0) (void)::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
  file.size_ = static_cast<uint64_t>(s.st_size);
  file.modified_ns_ = modified_ns(s);
  if (mode == Mode::kDirect) {
    if (const size_t alignment = enter_direct(fd)) {
      file.direct_ = true;
      file.alignment_ = alignment;
    } else {
      say_buffered_once(path);
    }
  }
#if defined(POSIX_FADV_RANDOM)
  // No read-ahead: we know better, and it would stay in the page cache.
  if (!file.direct_) (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
#endif
  return file;
}

File File::described(std::string path, uint64_t size, size_t alignment) {
  File file;
  file.path_ = std::move(path);
  file.size_ = size;
  file.alignment_ = alignment;
  file.direct_ = alignment > 1;
  return file;
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      size_(other.size_),
      modified_ns_(other.modified_ns_),
      alignment_(other.alignment_),
      fd_(std::exchange(other.fd_, -1)),
      direct_(other.direct_),
      growing_(other.growing_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(size_, other.size_);
  std::swap(modified_ns_, other.modified_ns_);
  std::swap(alignment_, other.alignment_);
  std::swap(fd_, other.fd_);
  std::swap(direct_, other.direct_);
  std::swap(growing_, other.growing_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) (void)::close(fd_);
}

Status File::read(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    return io_error(
        fmt::format("{}: {} bytes at offset {} reach past the end ({} bytes)",
                    path_,
                    out.size(),
                    offset,
                    size_));
  }
  const size_t a = alignment_;
  AlignedBuffer bounce;
  if (a > 1 && !out.empty()) {
    bounce = AlignedBuffer(std::min(kBounceBytes, out.size() + 2 * a), a);
  }
  size_t done = 0;
  while (done < out.size()) {
    const uint64_t at = offset + done;
    const size_t want = out.size() - done;
    const size_t skip = static_cast<size_t>(at % a);  // in the first block
    const size_t room = bounce.size() / a * a;
    const size_t span =
        a == 1 ? want : std::min(room, (skip + want + a - 1) / a * a);
    std::byte* to = a == 1 ? out.data() + done : bounce.data();
    const ssize_t n = pread_retrying(fd_, to, span, at - skip);
    if (n < 0) {
      return io_error(fmt::format("{}: reading at offset {}: {}",
                                  path_,
                                  at,
                                  error_text(static_cast<int>(-n))));
    }
    if (static_cast<size_t>(n) <= skip) {
      return io_error(fmt::format(
          "{}: ends at offset {} while {} bytes were expected: the file was "
          "cut while in use",
          path_,
          at,
          size_));
    }
    const size_t got = std::min(want, static_cast<size_t>(n) - skip);
    if (a > 1) std::memcpy(out.data() + done, to + skip, got);
    done += got;
  }
  drop_cached(offset, out.size());
  return check_unchanged();
}

Status File::check_unchanged() const {
  if (fd_ < 0 || growing_) return Status();
  struct stat s = {};
  if (::fstat(fd_, &s) != 0) {
    return io_error(
        fmt::format("{}: cannot stat: {}", path_, error_text(errno)));
  }
  if (static_cast<uint64_t>(s.st_size) == size_ &&
      modified_ns(s) == modified_ns_) {
    return Status();
  }
  return io_error(
      fmt::format("{}: the file was changed while in use (size {} -> {}): "
                  "start again with the file as it is now",
                  path_,
                  size_,
                  s.st_size));
}

void File::drop_cached([[maybe_unused]] uint64_t offset,
                       [[maybe_unused]] uint64_t bytes) const {
#if defined(POSIX_FADV_DONTNEED)
  if (direct_ || fd_ < 0 || bytes == 0) return;
  // Only whole pages are dropped: cover those that are touched in part.
  constexpr uint64_t kPage = 65536;
  const uint64_t begin = offset / kPage * kPage;
  const uint64_t end = (offset + bytes + kPage - 1) / kPage * kPage;
  (void)::posix_fadvise(fd_,
                        static_cast<off_t>(begin),
                        static_cast<off_t>(end - begin),
                        POSIX_FADV_DONTNEED);
#endif
}

}  // namespace mlx_flash
