// SPDX-License-Identifier: MIT
#include "kv/session_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <random>
#include <utility>

#include "base/check.h"
#include "kv/kv_file.h"
#include "kv/kv_layout.h"

namespace mlx_flash {
namespace {

constexpr std::array<char, 16> kMagic = {'m',
                                         'l',
                                         'x',
                                         '-',
                                         'f',
                                         'l',
                                         'a',
                                         's',
                                         'h',
                                         '/',
                                         'k',
                                         'v',
                                         '/',
                                         '0',
                                         '1',
                                         10};
constexpr uint64_t kRecordMagic = 0x3130534553'4b4c46;  // "FLKSES01"

// More than any conversation has; keeps a damaged count from asking for memory.
constexpr uint64_t kTokensMax = uint64_t{1} << 28;
constexpr uint64_t kNoteMax = uint64_t{1} << 28;

struct Head {
  std::array<char, 16> magic = kMagic;
  uint64_t save = 0;
  uint64_t model = 0;
  uint64_t layout = 0;
  uint64_t length = 0;
  uint64_t tokens = 0;
  uint64_t note_bytes = 0;
  uint64_t old_records = 0;
  uint64_t full_records = 0;
  uint64_t file_bytes = 0;
  uint64_t body_checksum = 0;    // of tokens, note, and what fills the pages
  uint64_t header_checksum = 0;  // of all before it
};
static_assert(sizeof(Head) == 104);

struct RecordHead {
  uint64_t magic = kRecordMagic;
  uint64_t save = 0;
  uint64_t index = 0;
  uint32_t layer = 0;
  uint32_t block = 0;
  uint32_t old = 0;
  uint32_t reserved = 0;
  uint64_t payload_bytes = 0;
  uint64_t payload_checksum = 0;  // with what fills its pages
  uint64_t header_checksum = 0;   // of all before it
};
static_assert(sizeof(RecordHead) == 64);

template <typename T>
uint64_t checksum_of(const T& head) {
  return kv_checksum(reinterpret_cast<const std::byte*>(&head),
                     offsetof(T, header_checksum));
}

std::string part_name(const std::string& path) {
  return path + ".new";
}

// The part file, ours and locked; -1 with errno, EWOULDBLOCK if another process
// has it.
int open_part(const std::string& name, int flags) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    const int fd = ::open(name.c_str(),
                          O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | flags,
                          0600);
    if (fd < 0) return -1;
    struct stat ours = {};
    struct stat there = {};
    int error = 0;
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0 || ::fstat(fd, &ours) != 0) {
      error = errno;
    } else if (!S_ISREG(ours.st_mode)) {
      error = EINVAL;
    } else if (::lstat(name.c_str(), &there) == 0 &&
               there.st_ino == ours.st_ino && there.st_dev == ours.st_dev) {
      return fd;
    }
    (void)::close(fd);
    if (error != 0) {
      errno = error;
      return -1;
    }
    // Its owner gave it its name between our two steps: what we hold is the
    // finished file, not a part.
  }
  errno = EWOULDBLOCK;
  return -1;
}

void remove_part(const std::string& path) {
  const std::string name = part_name(path);
  const int fd = open_part(name, 0);
  if (fd < 0) return;
  (void)::unlink(name.c_str());
  (void)::close(fd);
}

// A new name is on the disk when its folder is.
void sync_folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder =
      slash == path.npos ? "." : path.substr(0, std::max<size_t>(slash, 1));
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)::fsync(fd);
  (void)::close(fd);
}

Status failed(const std::string& path, int error) {
  const std::string text =
      fmt::format("{}: saving the session: {}", path, std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return exhausted(text + "; what was saved before is still there");
  }
  if (error == EWOULDBLOCK) {
    return exhausted(path + ": another process is saving this session");
  }
  if (error == EACCES || error == ENOENT || error == ENOTDIR ||
      error == EISDIR || error == EROFS || error == EINVAL || error == ELOOP) {
    return invalid_input(text);
  }
  return io_error(text);
}

}  // namespace

Result<std::unique_ptr<SessionWriter>> SessionWriter::create(
    const std::string& path,
    const SavedSession& session,
    size_t payload_bytes,
    PageWriteFn write) {
  std::unique_ptr<SessionWriter> writer(new SessionWriter());
  writer->path_ = path;
  writer->write_ = write ? std::move(write) : PageWriteFn(::pwrite);
  writer->payload_max_ = payload_bytes;
  const std::string part = part_name(path);
  writer->fd_ = open_part(part, O_CREAT);
  if (writer->fd_ < 0) return failed(part, errno);
  writer->part_ = part;
  if (::ftruncate(writer->fd_, 0) != 0) return failed(part, errno);
  write_directly(writer->fd_);
  std::random_device random;
  writer->save_ = uint64_t{random()} << 32 | random();

  const size_t token_bytes = session.tokens.size() * sizeof(int32_t);
  const size_t bytes = sizeof(Head) + token_bytes + session.note.size();
  writer->head_ = AlignedBuffer(KvLayout::whole_pages(bytes), kKvAlignment);
  std::byte* head = writer->head_.data();
  std::memset(head, 0, writer->head_.size());
  std::byte* body = head + sizeof(Head);
  if (token_bytes > 0) std::memcpy(body, session.tokens.data(), token_bytes);
  if (!session.note.empty()) {
    std::memcpy(body + token_bytes, session.note.data(), session.note.size());
  }
  Head fields;
  fields.save = writer->save_;
  fields.model = session.model;
  fields.layout = session.layout;
  fields.length = session.length;
  fields.tokens = session.tokens.size();
  fields.note_bytes = session.note.size();
  fields.body_checksum = kv_checksum(body, writer->head_.size() - sizeof(Head));
  std::memcpy(head, &fields, sizeof fields);
  writer->end_ = writer->head_.size();
  writer->staging_ = AlignedBuffer(
      KvLayout::whole_pages(sizeof(RecordHead) + payload_bytes), kKvAlignment);
  std::memset(writer->staging_.data(), 0, writer->staging_.size());
  return writer;
}

SessionWriter::~SessionWriter() {
  if (!part_.empty()) (void)::unlink(part_.c_str());
  if (fd_ >= 0) (void)::close(fd_);
}

std::byte* SessionWriter::payload() {
  return staging_.data() + sizeof(RecordHead);
}

Status SessionWriter::write(const std::byte* data,
                            size_t n,
                            uint64_t offset) const {
  const int error = write_pages(fd_, data, n, offset, write_);
  return error == 0 ? Status() : failed(path_, error);
}

Status SessionWriter::put(const KvVersion& version, size_t bytes) {
  FLASH_CHECK(bytes <= payload_max_);
  RecordHead head;
  const size_t whole = KvLayout::whole_pages(sizeof head + bytes);
  std::memset(payload() + bytes, 0, whole - sizeof head - bytes);
  head.save = save_;
  head.index = old_ + full_;
  head.layer = version.layer;
  head.block = version.block;
  head.old = version.old ? 1 : 0;
  head.payload_bytes = bytes;
  head.payload_checksum = kv_checksum(payload(), whole - sizeof head);
  head.header_checksum = checksum_of(head);
  std::memcpy(staging_.data(), &head, sizeof head);
  FLASH_RETURN_IF_ERROR(write(staging_.data(), whole, end_));
  end_ += whole;
  ++(version.old ? old_ : full_);
  return Status();
}

Status SessionWriter::commit() {
  Head head;
  std::memcpy(&head, head_.data(), sizeof head);
  head.old_records = old_;
  head.full_records = full_;
  head.file_bytes = end_;
  head.header_checksum = checksum_of(head);
  std::memcpy(head_.data(), &head, sizeof head);
  FLASH_RETURN_IF_ERROR(write(head_.data(), head_.size(), 0));
  if (::fsync(fd_) != 0) return failed(path_, errno);
#if defined(POSIX_FADV_DONTNEED)
  (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
#endif
  if (std::rename(part_.c_str(), path_.c_str()) != 0) {
    return failed(path_, errno);
  }
  part_.clear();
  sync_folder(path_);
  return Status();
}

Result<std::unique_ptr<SessionReader>> SessionReader::open(
    const std::string& path) {
  remove_part(path);
  struct stat there = {};
  if (::stat(path.c_str(), &there) != 0 && errno == ENOENT) {
    return std::unique_ptr<SessionReader>();
  }
  auto file = File::open(path, File::Mode::kDirect);
  if (!file.ok()) return invalid_input(file.status().message());
  std::unique_ptr<SessionReader> reader(
      new SessionReader(std::move(file).value()));
  FLASH_RETURN_IF_ERROR(reader->read_header());
  return reader;
}

Status SessionReader::damaged(const std::string& what) const {
  return io_error("the saved session is damaged: " + what);
}

Status SessionReader::read_header() {
  Head head;
  const auto n =
      static_cast<size_t>(std::min<uint64_t>(file_.size(), sizeof head));
  const std::span<std::byte> out(reinterpret_cast<std::byte*>(&head), n);
  FLASH_RETURN_IF_ERROR(file_.read(0, out));
  // One that is ours but for some bytes is damaged; anything else is somebody's
  // file, and stays as it is.
  size_t same = 0;
  const size_t known = std::min(n, kMagic.size());
  for (size_t i = 0; i < known; ++i) same += head.magic[i] == kMagic[i] ? 1 : 0;
  if (same * 4 < known * 3) {
    return invalid_input(fmt::format(
        "{}: not a session file of mlx-flash: name another", file_.path()));
  }
  if (n < sizeof head) return damaged("it ends early");
  if (head.magic != kMagic || head.header_checksum != checksum_of(head)) {
    return damaged("its header");
  }
  if (head.file_bytes != file_.size()) return damaged("it ends early");
  const uint64_t bytes = sizeof head + head.tokens * 4 + head.note_bytes;
  if (head.tokens > kTokensMax || head.note_bytes > kNoteMax ||
      KvLayout::whole_pages(bytes) > file_.size() ||
      head.length > head.tokens) {
    return damaged("its header");
  }
  const size_t token_bytes = static_cast<size_t>(head.tokens) * 4;
  std::vector<std::byte> body(KvLayout::whole_pages(bytes) - sizeof head);
  FLASH_RETURN_IF_ERROR(file_.read(sizeof head, body));
  if (kv_checksum(body.data(), body.size()) != head.body_checksum) {
    return damaged("its tokens");
  }
  save_ = head.save;
  old_ = head.old_records;
  full_ = head.full_records;
  session_.model = head.model;
  session_.layout = head.layout;
  session_.length = head.length;
  session_.tokens.resize(head.tokens);
  if (token_bytes > 0) {
    std::memcpy(session_.tokens.data(), body.data(), token_bytes);
  }
  session_.note.assign(reinterpret_cast<const char*>(body.data()) + token_bytes,
                       head.note_bytes);
  at_ = sizeof head + body.size();
  return Status();
}

Result<SessionReader::Record> SessionReader::next(size_t payload_bytes) {
  FLASH_CHECK(read_ < old_ + full_);
  const auto read = [&](uint64_t offset, std::span<std::byte> out) {
    return file_.size() < offset || file_.size() - offset < out.size()
               ? damaged("it ends early")
               : file_.read(offset, out);
  };
  const std::string where = fmt::format("record {}, offset {}", read_, at_);
  const size_t most = KvLayout::whole_pages(sizeof(RecordHead) + payload_bytes);
  if (staging_.size() < most) staging_ = AlignedBuffer(most, kKvAlignment);
  FLASH_RETURN_IF_ERROR(read(at_, staging_.span().first(kKvAlignment)));
  RecordHead head;
  std::memcpy(&head, staging_.data(), sizeof head);
  if (head.magic != kRecordMagic || head.header_checksum != checksum_of(head) ||
      head.save != save_ || head.index != read_ ||
      head.payload_bytes > payload_bytes) {
    return damaged(where);
  }
  const auto bytes = static_cast<size_t>(head.payload_bytes);
  const size_t whole = KvLayout::whole_pages(sizeof head + bytes);
  FLASH_RETURN_IF_ERROR(
      read(at_ + kKvAlignment,
           staging_.span().subspan(kKvAlignment, whole - kKvAlignment)));
  const std::byte* payload = staging_.data() + sizeof head;
  if (kv_checksum(payload, whole - sizeof head) != head.payload_checksum) {
    return damaged(where);
  }
  ++read_;
  at_ += whole;
  return Record{{head.layer, head.block, head.old != 0}, payload, bytes};
}

}  // namespace mlx_flash
