// SPDX-License-Identifier: MIT
#pragma once

// Memory for the blocks of all sessions of an engine, inside the weight arena.
// There are two sizes: blocks in full precision and old ones.
//
// Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "kv/kv_layout.h"
#include "residency/arena.h"

namespace mlx_flash {

class KvFile;
class KvReader;

// Blocks of one size.
class BlockPool {
 public:
  static Result<BlockPool> create(Arena& arena, size_t stride, size_t max);

  // A block of undefined content. Fails with kExhausted when the arena's
  // budget or the reservation is used up.
  Result<std::byte*> take();
  void give(std::byte* block) { free_.push_back(block); }
  // Returns the memory of unused blocks to the arena.
  void trim();

  size_t stride() const { return stride_; }
  size_t free() const { return free_.size(); }  // committed, nobody's
  uint64_t committed_bytes() const { return committed_ * uint64_t{stride_}; }
  // What taking `blocks` would commit.
  uint64_t bytes_missing(size_t blocks) const {
    return blocks > free() ? (blocks - free()) * uint64_t{stride_} : 0;
  }

 private:
  BlockPool() = default;
  Arena* arena_ = nullptr;
  size_t stride_ = 0;
  std::byte* base_ = nullptr;
  size_t max_ = 0;
  size_t next_ = 0;  // blocks below have been handed out before
  size_t committed_ = 0;
  std::vector<std::byte*> free_;
  std::vector<std::byte*> uncommitted_;  // below next_, addresses only
};

class KvPool {
 public:
  // Reserves addresses for `blocks_max` blocks of each size; commits nothing.
  static Result<std::unique_ptr<KvPool>> create(Arena& arena,
                                                const KvLayout& layout,
                                                size_t blocks_max);
  static uint64_t address_bytes(const KvLayout& layout, size_t blocks_max) {
    return (layout.full_stride() + layout.old_stride() + layout.raw_stride() +
            kKvAlignment) *
           uint64_t{blocks_max};
  }

  ~KvPool();

  // Where old blocks go that find no room, and how they come back. Kept by the
  // caller while the pool is in use.
  void attach(KvFile* file, KvReader* reader, uint64_t ram_bytes);

  const KvLayout& layout() const { return layout_; }
  BlockPool& full() { return full_; }
  BlockPool& old() { return old_; }
  BlockPool& raw() { return raw_; }  // keys before rope
  KvFile* file() { return file_; }
  KvReader* reader() { return reader_; }

  uint64_t committed_bytes() const {
    return full_.committed_bytes() + old_.committed_bytes() +
           raw_.committed_bytes();
  }
  // Bytes old blocks may take in memory; beyond it they go to the file.
  uint64_t old_limit() const { return old_limit_; }
  uint64_t old_bytes = 0;  // taken, by all sessions

  void trim();

 private:
  KvPool(KvLayout layout, BlockPool full, BlockPool old, BlockPool raw)
      : layout_(std::move(layout)),
        full_(std::move(full)),
        old_(std::move(old)),
        raw_(std::move(raw)) {}

  KvLayout layout_;
  BlockPool full_;
  BlockPool old_;
  BlockPool raw_;
  KvFile* file_ = nullptr;
  KvReader* reader_ = nullptr;
  uint64_t old_limit_ = UINT64_MAX;
};

}  // namespace mlx_flash
