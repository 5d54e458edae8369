// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include "base/check.h"
#include "io/aligned_buffer.h"
#include "kv/page_write.h"
#include "kv/session_format.h"
#include "kv/session_part.h"

namespace mlx_flash {
namespace {

using session_format::checksum_of;
using session_format::Head;
using session_format::head_checksum;
using session_format::kHeads;
using session_format::kHeadsBytes;
using session_format::kind_of;
using session_format::order_of;
using session_format::read_saved;
using session_format::RecordHead;
using session_format::Saved;
using session_format::SavedRecord;

constexpr uint64_t kPage = kKvAlignment;

// What a save may write over: what neither its base names nor it has written.
class FreeSpace {
 public:
  explicit FreeSpace(const Saved* base) : end_(kHeadsBytes) {
    if (base == nullptr) return;
    std::vector<Extent> used;
    for (const SavedRecord& r : base->records) {
      used.push_back({r.offset, r.pages * kPage});
    }
    const Head& head = base->head;
    used.push_back({head.index_offset,
                    KvLayout::whole_pages(head.tokens * sizeof(int32_t) +
                                          head.records * sizeof(SavedRecord) +
                                          head.note_bytes)});
    std::sort(used.begin(), used.end(), [](const Extent& a, const Extent& b) {
      return a.offset < b.offset;
    });
    for (const Extent& extent : used) {
      if (extent.offset > end_) {
        holes_.push_back({end_, extent.offset - end_});
      }
      end_ = std::max(end_, extent.offset + extent.bytes);
    }
  }

  // The first hole that is large enough, else the end.
  uint64_t take(uint64_t bytes) {
    for (Extent& hole : holes_) {
      if (hole.bytes < bytes) continue;
      const uint64_t at = hole.offset;
      hole.offset += bytes;
      hole.bytes -= bytes;
      return at;
    }
    return std::exchange(end_, end_ + bytes);
  }

 private:
  struct Extent {
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };
  std::vector<Extent> holes_;
  uint64_t end_;
};

// Positions that two saves have in common, given what each has forgotten.
uint64_t common_positions(const SavedSession& a, const SavedSession& b) {
  if (a.forgotten != b.forgotten || a.forgotten_at != b.forgotten_at) return 0;
  const auto [end, other] = std::mismatch(
      a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end());
  const auto same = static_cast<uint64_t>(end - a.tokens.begin());
  if (same < a.forgotten_at) return 0;
  return std::min({same - a.forgotten, a.length, b.length});
}

class Writer : public SessionWriter {
 public:
  Writer(std::string path, const SavedSession& session, const Options& options)
      : path_(std::move(path)),
        session_(session),
        write_(options.write ? options.write : PageWriteFn(::pwrite)),
        payload_max_(options.payload_bytes),
        staging_(
            KvLayout::whole_pages(sizeof(RecordHead) + options.payload_bytes),
            kPage) {}
  ~Writer() override;

  // The file as it is, if its newest save is `base`.
  bool continue_from(const SavedMark& base);
  // A file of its own.
  Status begin_anew();

  std::byte* payload() override { return staging_.data() + sizeof(RecordHead); }
  Status put(const KvVersion& version, size_t bytes) override;
  uint64_t common() const override { return common_; }
  bool keep(const KvVersion& version) override;
  Status commit() override;
  SavedMark mark() const override { return {file_, save_}; }

 private:
  Status write(const std::byte* data, size_t n, uint64_t offset) const;
  Status sync() const;
  void add(const SavedRecord& record);
  Status write_index(Head& head);
  Status write_head(Head& head);

  std::string path_;
  const SavedSession& session_;  // outlives the writer
  PageWriteFn write_;
  size_t payload_max_ = 0;
  std::string part_;  // its name until commit(); empty: it has its own
  int fd_ = -1;
  bool committed_ = false;
  uint64_t file_ = 0;
  uint64_t save_ = 0;
  std::optional<Saved> base_;
  uint64_t common_ = 0;
  FreeSpace space_{nullptr};
  std::vector<SavedRecord> records_;
  uint64_t end_ = kHeadsBytes;  // of all that this save names
  AlignedBuffer staging_;
};

Writer::~Writer() {
  if (!part_.empty()) (void)::unlink(part_.c_str());
  if (fd_ < 0) return;
  if (!committed_ && base_) {
    // What the base does not name.
    (void)::ftruncate(fd_, static_cast<off_t>(base_->head.file_bytes));
  }
  (void)::close(fd_);
}

bool Writer::continue_from(const SavedMark& base) {
  if (base == SavedMark{}) return false;
  const int fd = open_locked(path_, 0);
  if (fd < 0) return false;
  auto file = File::open(path_, File::Mode::kDirect);
  auto saved = file.ok() ? read_saved(*file) : Result<Saved>(file.status());
  if (!saved.ok() || saved->head.file != base.file ||
      saved->head.save != base.save || saved->head.model != session_.model ||
      saved->head.layout != session_.layout) {
    (void)::close(fd);
    return false;
  }
  fd_ = fd;
  write_directly(fd_);
  file_ = base.file;
  save_ = base.save + 1;
  base_ = std::move(saved).value();
  space_ = FreeSpace(&*base_);
  common_ = common_positions(base_->session, session_);
  return true;
}

Status Writer::begin_anew() {
  const std::string part = part_name(path_);
  fd_ = open_locked(part, O_CREAT);
  if (fd_ < 0) return save_failed(part, errno);
  part_ = part;
  if (::ftruncate(fd_, 0) != 0 || ::ftruncate(fd_, kHeadsBytes) != 0) {
    return save_failed(part, errno);
  }
  write_directly(fd_);
  std::random_device random;
  file_ = uint64_t{random()} << 32 | random() | 1;
  save_ = 0;
  return Status();
}

Status Writer::write(const std::byte* data, size_t n, uint64_t offset) const {
  const int error = write_pages(fd_, data, n, offset, write_);
  return error == 0 ? Status() : save_failed(path_, error);
}

Status Writer::sync() const {
  return ::fsync(fd_) == 0 ? Status() : save_failed(path_, errno);
}

void Writer::add(const SavedRecord& record) {
  FLASH_CHECK(records_.empty() || order_of(records_.back()) < order_of(record));
  records_.push_back(record);
  end_ = std::max(end_, record.offset + record.pages * kPage);
}

Status Writer::put(const KvVersion& version, size_t bytes) {
  FLASH_CHECK(bytes <= payload_max_);
  const size_t whole = KvLayout::whole_pages(sizeof(RecordHead) + bytes);
  const size_t filled = whole - sizeof(RecordHead);
  std::memset(payload() + bytes, 0, filled - bytes);
  RecordHead head;
  head.file = file_;
  head.save = save_;
  head.layer = version.layer;
  head.block = version.block;
  head.kind = kind_of(version);
  head.payload_bytes = bytes;
  head.payload_checksum = kv_checksum(payload(), filled);
  head.header_checksum = checksum_of(head);
  std::memcpy(staging_.data(), &head, sizeof head);
  const uint64_t offset = space_.take(whole);
  FLASH_RETURN_IF_ERROR(write(staging_.data(), whole, offset));
  add({.offset = offset,
       .save = save_,
       .layer = version.layer,
       .block = version.block,
       .kind = head.kind,
       .pages = static_cast<uint32_t>(whole / kPage)});
  return Status();
}

bool Writer::keep(const KvVersion& version) {
  if (!base_) return false;
  const SavedRecord wanted{
      .layer = version.layer, .block = version.block, .kind = kind_of(version)};
  const auto& records = base_->records;
  const auto found = std::lower_bound(
      records.begin(), records.end(), wanted, [](const auto& a, const auto& b) {
        return order_of(a) < order_of(b);
      });
  if (found == records.end() || order_of(*found) != order_of(wanted)) {
    return false;
  }
  add(*found);
  return true;
}

Status Writer::write_index(Head& head) {
  const size_t token_bytes = session_.tokens.size() * sizeof(int32_t);
  const size_t record_bytes = records_.size() * sizeof(SavedRecord);
  const size_t bytes =
      KvLayout::whole_pages(token_bytes + record_bytes + session_.note.size());
  AlignedBuffer index(bytes, kPage);
  std::byte* at = index.data();
  std::memset(at, 0, index.size());
  if (token_bytes > 0) std::memcpy(at, session_.tokens.data(), token_bytes);
  at += token_bytes;
  if (record_bytes > 0) std::memcpy(at, records_.data(), record_bytes);
  at += record_bytes;
  if (!session_.note.empty()) {
    std::memcpy(at, session_.note.data(), session_.note.size());
  }
  head.index_offset = space_.take(bytes);
  head.index_checksum = kv_checksum(index.data(), bytes);
  end_ = std::max(end_, head.index_offset + bytes);
  return bytes == 0 ? Status() : write(index.data(), bytes, head.index_offset);
}

Status Writer::write_head(Head& head) {
  AlignedBuffer page(kPage, kPage);
  std::memset(page.data(), 0, page.size());
  std::memcpy(page.data(), &head, sizeof head);
  head.head_checksum = head_checksum(page.data());
  std::memcpy(page.data(), &head, sizeof head);
  return write(page.data(), kPage, save_ % kHeads * kPage);
}

Status Writer::commit() {
  Head head;
  head.file = file_;
  head.save = save_;
  head.model = session_.model;
  head.layout = session_.layout;
  head.length = session_.length;
  head.forgotten = session_.forgotten;
  head.forgotten_at = session_.forgotten_at;
  head.tokens = session_.tokens.size();
  head.note_bytes = session_.note.size();
  head.records = records_.size();
  FLASH_RETURN_IF_ERROR(write_index(head));
  head.file_bytes = end_;
  // A head must not be on the disk before what it names.
  if (base_) FLASH_RETURN_IF_ERROR(sync());
  FLASH_RETURN_IF_ERROR(write_head(head));
  // From here on it may be what a reader finds, whatever becomes of us.
  committed_ = true;
  FLASH_RETURN_IF_ERROR(sync());
  if (!part_.empty()) {
    if (std::rename(part_.c_str(), path_.c_str()) != 0) {
      return save_failed(path_, errno);
    }
    part_.clear();
    sync_folder(path_);
  } else {
    // So that of two heads one is torn only where a save did not end.
    AlignedBuffer zeros(kPage, kPage);
    std::memset(zeros.data(), 0, zeros.size());
    (void)write_pages(
        fd_, zeros.data(), kPage, (save_ + 1) % kHeads * kPage, write_);
    (void)::ftruncate(fd_, static_cast<off_t>(end_));
  }
#if defined(POSIX_FADV_DONTNEED)
  (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
#endif
  return Status();
}

}  // namespace

Result<std::unique_ptr<SessionWriter>> SessionWriter::create(
    const std::string& path,
    const SavedSession& session,
    const Options& options) {
  auto writer = std::make_unique<Writer>(path, session, options);
  if (!writer->continue_from(options.base)) {
    FLASH_RETURN_IF_ERROR(writer->begin_anew());
  }
  return std::unique_ptr<SessionWriter>(std::move(writer));
}

}  // namespace mlx_flash
