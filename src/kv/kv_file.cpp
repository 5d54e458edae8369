// SPDX-License-Identifier: MIT
#include "kv/kv_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/size.h"
#include "kv/kv_folder.h"
#include "kv/kv_layout.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kMagic = 0x314b4c4256'4b4c46;  // "FLKVBLK1"

struct Header {
  uint64_t magic = kMagic;
  uint64_t generation = 0;
  uint64_t slot = 0;
  uint32_t layer = 0;
  uint32_t block = 0;
  uint64_t payload_bytes = 0;
  uint64_t payload_checksum = 0;
  uint64_t reserved = 0;
  uint64_t header_checksum = 0;  // of all before it
};
static_assert(sizeof(Header) == 64);
constexpr size_t kHeaderBytes = sizeof(Header);

uint64_t checksum_of(const Header& header) {
  return kv_checksum(reinterpret_cast<const std::byte*>(&header),
                     offsetof(Header, header_checksum));
}

}  // namespace

uint64_t kv_checksum(const std::byte* data, size_t n) {
  constexpr uint64_t kOdd = 0x9e3779b97f4a7c15;
  // Four independent chains keep the multiplier busy.
  std::array<uint64_t, 4> h = {n, n ^ kOdd, ~n, n * kOdd};
  size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    std::array<uint64_t, 4> x;
    std::memcpy(x.data(), data + i, 32);
    for (size_t k = 0; k < 4; ++k) h[k] = std::rotl((h[k] ^ x[k]) * kOdd, 29);
  }
  for (; i < n; ++i) {
    h[0] = std::rotl((h[0] ^ static_cast<uint64_t>(data[i])) * kOdd, 29);
  }
  uint64_t all = 0;
  for (const uint64_t each : h) {
    all = (all ^ each) * kOdd;
    all ^= all >> 32;
  }
  return all;
}

Result<std::unique_ptr<KvFile>> KvFile::create(const Options& options) {
  std::unique_ptr<KvFile> kv(new KvFile());
  kv->options_ = options;
  if (!kv->options_.write) kv->options_.write = ::pwrite;
  kv->record_bytes_ =
      KvLayout::whole_pages(kHeaderBytes + options.payload_bytes);
  kv->staging_ = AlignedBuffer(kv->record_bytes_, kKvAlignment);
  std::memset(kv->staging_.data(), 0, kv->record_bytes_);
  FLASH_ASSIGN_OR_RETURN(PrivateFile made, make_private_file(options.folder));
  kv->fd_ = made.fd;
  kv->file_ = std::make_unique<File>(std::move(made.reader));
  kv->file_->expect_growth();
  return kv;
}

KvFile::~KvFile() {
  if (fd_ >= 0) (void)::close(fd_);
}

size_t KvFile::remove_leftovers(int folder_fd) {
  return remove_dead_folders(folder_fd);
}

std::byte* KvFile::payload() {
  return staging_.data() + kHeaderBytes;
}

Result<KvPlace> KvFile::put(uint32_t layer, uint32_t block) {
  const bool again = !free_.empty();
  const uint64_t slot = again ? free_.back() : slots_;
  if (!again && options_.limit_bytes != 0 &&
      (slots_ + 1) * record_bytes_ > options_.limit_bytes) {
    return exhausted(fmt::format(
        "the KV cache on disk has reached --kv-disk-limit ({}): raise it, or "
        "take a shorter --ctx",
        format_size(options_.limit_bytes)));
  }
  Header header;
  header.generation = ++generation_;
  header.slot = slot;
  header.layer = layer;
  header.block = block;
  header.payload_bytes = options_.payload_bytes;
  header.payload_checksum = kv_checksum(payload(), options_.payload_bytes);
  header.header_checksum = checksum_of(header);
  std::memcpy(staging_.data(), &header, kHeaderBytes);
  FLASH_RETURN_IF_ERROR(write_record(slot * record_bytes_));
  if (again) {
    free_.pop_back();
  } else {
    ++slots_;
  }
  ++used_;
  written_ += record_bytes_;
  return KvPlace{slot, header.generation, layer, block};
}

void KvFile::give(const KvPlace& place) {
  FLASH_CHECK(place.generation != 0 && used_ > 0);
  free_.push_back(place.slot);
  --used_;
}

Status KvFile::write_record(uint64_t offset) {
  const int error =
      write_pages(fd_, staging_.data(), record_bytes_, offset, options_.write);
  return error == 0 ? Status() : write_error(error);
}

Status KvFile::write_error(int error) const {
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    return exhausted(fmt::format(
        "{}: the disk is full: no room for more of the KV cache ({} in use); "
        "free some, or name another folder with --kv-dir",
        file_->path(),
        format_size(bytes_used())));
  }
  return io_error(fmt::format(
      "{}: writing the KV cache: {}", file_->path(), std::strerror(error)));
}

Result<const std::byte*> KvFile::open_record(const std::byte* record,
                                             const KvPlace& place) const {
  Header header;
  std::memcpy(&header, record, kHeaderBytes);
  const std::byte* payload = record + kHeaderBytes;
  const bool ours =
      header.magic == kMagic && header.header_checksum == checksum_of(header) &&
      header.generation == place.generation && header.slot == place.slot &&
      header.layer == place.layer && header.block == place.block &&
      header.payload_bytes == options_.payload_bytes;
  if (!ours ||
      kv_checksum(payload, options_.payload_bytes) != header.payload_checksum) {
    return io_error(fmt::format(
        "{}: offset {}: the KV block that was written there did not come back "
        "(layer {}, block {}): the disk or its file system lost data",
        file_->path(),
        place.slot * record_bytes_,
        place.layer,
        place.block));
  }
  return payload;
}

}  // namespace mlx_flash
