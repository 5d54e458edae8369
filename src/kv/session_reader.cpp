// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "io/aligned_buffer.h"
#include "kv/session_format.h"
#include "kv/session_part.h"

namespace mlx_flash {
namespace {

using session_format::checksum_of;
using session_format::kOld;
using session_format::kRaw;
using session_format::kRecordMagic;
using session_format::read_saved;
using session_format::RecordHead;
using session_format::Saved;
using session_format::SavedRecord;
using session_format::version_of;

class Reader : public SessionReader {
 public:
  Reader(File file, Saved saved)
      : file_(std::move(file)), saved_(std::move(saved)) {
    for (const SavedRecord& r : saved_.records) {
      old_ += r.kind == kOld ? 1 : 0;
      raw_ += r.kind == kRaw ? 1 : 0;
    }
  }

  const SavedSession& session() const override { return saved_.session; }
  bool earlier() const override { return saved_.earlier; }
  SavedMark mark() const override {
    return {saved_.head.file, saved_.head.save};
  }
  uint64_t old_records() const override { return old_; }
  uint64_t raw_records() const override { return raw_; }
  uint64_t full_records() const override {
    return saved_.records.size() - old_ - raw_;
  }
  Result<Record> next(size_t payload_bytes) override;

 private:
  File file_;
  Saved saved_;
  uint64_t old_ = 0;
  uint64_t raw_ = 0;
  size_t read_ = 0;  // records
  AlignedBuffer staging_;
};

Result<SessionReader::Record> Reader::next(size_t payload_bytes) {
  FLASH_CHECK(read_ < saved_.records.size());
  const SavedRecord& known = saved_.records[read_];
  const auto damaged = [&] {
    return io_error(
        fmt::format("the saved session is damaged: record {}", read_));
  };
  const size_t most = KvLayout::whole_pages(sizeof(RecordHead) + payload_bytes);
  const size_t bytes = size_t{known.pages} * kKvAlignment;
  if (bytes > most) return damaged();
  if (staging_.size() < most) staging_ = AlignedBuffer(most, kKvAlignment);
  FLASH_RETURN_IF_ERROR(file_.read(known.offset, staging_.span().first(bytes)));
  RecordHead head;
  std::memcpy(&head, staging_.data(), sizeof head);
  const std::byte* payload = staging_.data() + sizeof head;
  const bool ours =
      head.magic == kRecordMagic && head.header_checksum == checksum_of(head) &&
      head.file == saved_.head.file && head.save == known.save &&
      head.layer == known.layer && head.block == known.block &&
      head.kind == known.kind && head.payload_bytes <= bytes - sizeof head &&
      kv_checksum(payload, bytes - sizeof head) == head.payload_checksum;
  if (!ours) return damaged();
  ++read_;
  return Record{
      version_of(known), payload, static_cast<size_t>(head.payload_bytes)};
}

}  // namespace

Result<std::unique_ptr<SessionReader>> SessionReader::open(
    const std::string& path) {
  remove_part(path);
  struct stat there = {};
  if (::stat(path.c_str(), &there) != 0 && errno == ENOENT) {
    return std::unique_ptr<SessionReader>();
  }
  auto file = File::open(path, File::Mode::kDirect);
  if (!file.ok()) return invalid_input(file.status().message());
  FLASH_ASSIGN_OR_RETURN(Saved saved, read_saved(*file));
  return std::unique_ptr<SessionReader>(
      std::make_unique<Reader>(std::move(file).value(), std::move(saved)));
}

}  // namespace mlx_flash
