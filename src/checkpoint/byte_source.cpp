// SPDX-License-Identifier: MIT
#include "checkpoint/byte_source.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"

namespace mlx_flash {
namespace {

constexpr size_t kBufferBytes = size_t{64} << 10;

}  // namespace

Result<FileSource> FileSource::open(const std::string& path) {
  // Buffered: headers are small, and read in many small steps.
  FLASH_ASSIGN_OR_RETURN(auto file, File::open(path, File::Mode::kBuffered));
  return FileSource(std::move(file));
}

Status FileSource::read(uint64_t offset, std::span<std::byte> out) const {
  return file_.read(offset, out);
}

Status MemorySource::read(uint64_t offset, std::span<std::byte> out) const {
  if (offset > bytes_.size() || out.size() > bytes_.size() - offset) {
    return invalid_input(fmt::format("{}: ends at byte {}, {} wanted at {}",
                                     name_,
                                     bytes_.size(),
                                     out.size(),
                                     offset));
  }
  std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset),
              out.size(),
              out.begin());
  return {};
}

ByteReader::ByteReader(const ByteSource& source, uint64_t begin, uint64_t end)
    : source_(&source), position_(begin), end_(end) {
  FLASH_CHECK(begin <= end && end <= source.size());
}

Status ByteReader::fill() {
  const size_t want =
      static_cast<size_t>(std::min<uint64_t>(kBufferBytes, remaining()));
  buffer_.resize(kBufferBytes);
  buffer_at_ = 0;
  buffer_used_ = 0;
  FLASH_RETURN_IF_ERROR(
      source_->read(position_, std::span(buffer_).first(want)));
  buffer_used_ = want;
  return {};
}

Status ByteReader::read(std::span<std::byte> out) {
  if (out.size() > remaining()) {
    return invalid_input(
        fmt::format("{}: cut short: {} bytes wanted at byte {}, {} left",
                    source_->name(),
                    out.size(),
                    position_,
                    remaining()));
  }
  while (!out.empty()) {
    if (buffer_at_ == buffer_used_) {
      if (out.size() >= kBufferBytes) {
        FLASH_RETURN_IF_ERROR(source_->read(position_, out));
        position_ += out.size();
        return {};
      }
      FLASH_RETURN_IF_ERROR(fill());
    }
    const size_t n = std::min(out.size(), buffer_used_ - buffer_at_);
    std::memcpy(out.data(), buffer_.data() + buffer_at_, n);
    buffer_at_ += n;
    position_ += n;
    out = out.subspan(n);
  }
  return {};
}

Status ByteReader::skip(uint64_t bytes) {
  if (bytes > remaining()) {
    return invalid_input(
        fmt::format("{}: cut short: {} bytes claimed at byte {}, {} left",
                    source_->name(),
                    bytes,
                    position_,
                    remaining()));
  }
  const size_t buffered = buffer_used_ - buffer_at_;
  if (bytes <= buffered) {
    buffer_at_ += static_cast<size_t>(bytes);
  } else {
    buffer_at_ = buffer_used_ = 0;
  }
  position_ += bytes;
  return {};
}

Result<std::string> ByteReader::text(uint64_t bytes) {
  if (bytes > remaining()) return skip(bytes);
  std::string out(static_cast<size_t>(bytes), '\0');
  FLASH_RETURN_IF_ERROR(read(std::as_writable_bytes(std::span(out))));
  return out;
}

int ByteReader::next_after_fill() {
  if (remaining() == 0) return -1;
  Status status = fill();
  if (!status.ok()) {
    error_ = std::move(status);
    return -2;
  }
  return next();
}

}  // namespace mlx_flash
