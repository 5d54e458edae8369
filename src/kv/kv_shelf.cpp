// SPDX-License-Identifier: MIT
#include "kv/kv_shelf.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace mlx_flash {
namespace {

class MemoryShelf : public KvShelf {
 public:
  MemoryShelf(const KvLayout& layout,
              uint64_t bytes,
              BlockPool old,
              BlockPool full)
      : KvShelf(layout, bytes, old.stride(), full.stride()),
        old_(std::move(old)),
        full_(std::move(full)) {}
  ~MemoryShelf() override { trim(); }

  uint64_t committed_bytes() const override {
    return old_.committed_bytes() + full_.committed_bytes();
  }
  uint64_t bytes_missing(size_t old, size_t full) const override {
    return old_.bytes_missing(old) + full_.bytes_missing(full);
  }
  void trim() override {
    old_.trim();
    full_.trim();
  }
  Result<const std::byte*> get(const Item& item) override {
    return item.memory;
  }

 private:
  BlockPool& pool(const KvVersion& version) {
    return is_old(version) ? old_ : full_;
  }
  Status store(Item& item, std::span<const std::byte> payload) override {
    // Free blocks of the other size must not add to what is used.
    if (pool(item.version).free() == 0) trim();
    FLASH_ASSIGN_OR_RETURN(item.memory, pool(item.version).take());
    std::memcpy(item.memory, payload.data(), payload.size());
    return Status();
  }
  void forget(const Item& item) override {
    pool(item.version).give(item.memory);
  }

  BlockPool old_;
  BlockPool full_;
};

// Records are of old blocks; a full block is cut into as many as it takes.
class FileShelf : public KvShelf {
 public:
  FileShelf(ReadQueue& queue,
            const KvLayout& layout,
            uint64_t bytes,
            std::unique_ptr<KvFile> file)
      : KvShelf(layout,
                bytes,
                file->record_bytes(),
                pieces(layout, layout.full_bytes()) * file->record_bytes()),
        queue_(queue),
        file_(std::move(file)),
        record_(file_->record_bytes(), kKvAlignment),
        whole_(layout.full_bytes(), kKvAlignment) {}

  Result<const std::byte*> get(const Item& item) override {
    const size_t bytes =
        is_old(item.version) ? layout_.old_bytes() : layout_.full_bytes();
    size_t at = 0;
    for (const KvPlace& place : item.places) {
      FLASH_ASSIGN_OR_RETURN(const std::byte* payload, read(place));
      if (item.places.size() == 1) return payload;
      const size_t n = std::min(layout_.old_bytes(), bytes - at);
      std::memcpy(whole_.data() + at, payload, n);
      at += n;
    }
    return whole_.data();
  }

 private:
  static size_t pieces(const KvLayout& layout, size_t bytes) {
    return (bytes + layout.old_bytes() - 1) / layout.old_bytes();
  }

  Result<const std::byte*> read(const KvPlace& place) {
    ReadRequest request;
    request.file = &file_->file();
    request.offset = place.slot * file_->record_bytes();
    request.buffer = record_.data();
    request.bytes = request.bytes_min =
        static_cast<uint32_t>(file_->record_bytes());
    request.read_class = ReadClass::kNeededNow;
    queue_.submit(channel_, request);
    ReadRequest* done = nullptr;
    while (queue_.wait(channel_, {&done, 1}, true) == 0) {
    }
    FLASH_RETURN_IF_ERROR(request.status);
    return file_->open_record(record_.data(), place);
  }

  Status store(Item& item, std::span<const std::byte> payload) override {
    while (!payload.empty()) {
      const auto piece =
          payload.first(std::min(payload.size(), layout_.old_bytes()));
      std::memcpy(file_->payload(), piece.data(), piece.size());
      const auto place = file_->put(item.version.layer, item.version.block);
      if (!place.ok()) {
        forget(item);
        return place.status();
      }
      item.places.push_back(*place);
      payload = payload.subspan(piece.size());
    }
    return Status();
  }

  void forget(const Item& item) override {
    for (const KvPlace& place : item.places) file_->give(place);
  }

  ReadQueue& queue_;
  ReadChannel channel_;
  std::unique_ptr<KvFile> file_;
  AlignedBuffer record_;
  AlignedBuffer whole_;
};

}  // namespace

KvShelf::KvShelf(const KvLayout& layout,
                 uint64_t bytes,
                 uint64_t old_cost,
                 uint64_t full_cost)
    : layout_(layout),
      capacity_(bytes),
      old_cost_(layout.quant_bits == 0 ? full_cost : old_cost),
      full_cost_(full_cost) {}

uint64_t KvShelf::address_bytes(const KvLayout& layout, uint64_t bytes) {
  // Each size may have all of it.
  return 2 * bytes + 2 * (layout.full_stride() + 4 * kKvAlignment);
}

Result<std::unique_ptr<KvShelf>> KvShelf::in_memory(Arena& arena,
                                                    const KvLayout& layout,
                                                    uint64_t bytes) {
  const bool plain = layout.quant_bits == 0;
  FLASH_ASSIGN_OR_RETURN(
      BlockPool old,
      BlockPool::create(
          arena, layout.old_stride(), plain ? 0 : bytes / layout.old_stride()));
  FLASH_ASSIGN_OR_RETURN(
      BlockPool full,
      BlockPool::create(
          arena, layout.full_stride(), bytes / layout.full_stride()));
  return std::unique_ptr<KvShelf>(std::make_unique<MemoryShelf>(
      layout, bytes, std::move(old), std::move(full)));
}

Result<std::unique_ptr<KvShelf>> KvShelf::in_file(ReadQueue& queue,
                                                  const KvLayout& layout,
                                                  uint64_t bytes,
                                                  const FileOptions& options) {
  FLASH_ASSIGN_OR_RETURN(auto file,
                         KvFile::create({.folder = options.folder,
                                         .payload_bytes = layout.old_bytes(),
                                         .write = options.write}));
  return std::unique_ptr<KvShelf>(
      std::make_unique<FileShelf>(queue, layout, bytes, std::move(file)));
}

Result<KvShelf::Item> KvShelf::put(const KvVersion& version,
                                   std::span<const std::byte> payload) {
  FLASH_CHECK(payload.size() ==
              (is_old(version) ? layout_.old_bytes() : layout_.full_bytes()));
  const uint64_t bytes = cost(is_old(version));
  if (used_ + bytes > capacity_) {
    return exhausted("no room for more blocks of earlier requests");
  }
  Item item{.version = version};
  FLASH_RETURN_IF_ERROR(store(item, payload));
  used_ += bytes;
  return item;
}

void KvShelf::give(const Item& item) {
  used_ -= cost(is_old(item.version));
  forget(item);
}

}  // namespace mlx_flash
