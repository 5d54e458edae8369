// SPDX-License-Identifier: MIT
#pragma once

// Keys and values of the tokens of a session, for the fast kernels.
//
// Memory is taken in pages of kernels::kKvBlock positions, all layers of them
// in one page, from a pool inside the weight arena: a session holds just the
// pages its tokens need, and truncating gives pages back. Inside a page each
// layer has one block, keys then values, in the layout of
// kernels/attention.h.
//
// Thread-compatible: one thread grows and truncates; while it does not, any
// thread may read blocks and write rows of different positions.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "base/weight_format.h"
#include "kernels/attention.h"
#include "residency/arena.h"

namespace mlx_flash {

struct KvLayout {
  size_t layers = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;   // of keys
  size_t value_dim = 0;  // of values
  DType dtype = DType::kF16;

  size_t key_row_bytes() const {
    return kv_heads * head_dim * dtype_bytes(dtype);
  }
  size_t value_row_bytes() const {
    return kv_heads * value_dim * dtype_bytes(dtype);
  }
  size_t bytes_per_token() const {
    return layers * (key_row_bytes() + value_row_bytes());
  }
  size_t page_bytes() const { return kernels::kKvBlock * bytes_per_token(); }
};

// Pages for all sessions of an engine.
class KvPool {
 public:
  // Reserves addresses for `pages_max` pages; commits nothing yet.
  static Result<std::unique_ptr<KvPool>> create(Arena& arena,
                                                const KvLayout& layout,
                                                size_t pages_max);
  ~KvPool();

  const KvLayout& layout() const { return layout_; }
  size_t page_stride() const { return stride_; }  // bytes committed per page
  size_t pages_committed() const { return committed_; }
  size_t pages_free() const { return free_.size(); }  // committed, unused

  // A page of undefined content. Fails with kExhausted when the arena's budget
  // or the reservation is used up.
  Result<std::byte*> take();
  void give(std::byte* page);

  // Returns the memory of unused pages to the arena.
  void trim();

 private:
  KvPool(Arena& arena, const KvLayout& layout) : arena_(arena) {
    layout_ = layout;
  }

  Arena& arena_;
  KvLayout layout_;
  size_t stride_ = 0;
  std::byte* base_ = nullptr;
  size_t pages_max_ = 0;
  size_t committed_ = 0;
  std::vector<std::byte*> free_;         // committed, nobody's
  std::vector<std::byte*> uncommitted_;  // addresses only
};

class KvCache {
 public:
  explicit KvCache(KvPool& pool);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Room for positions [0, positions). Fails with kExhausted and keeps what
  // there was.
  Status ensure(size_t positions);
  // Gives back what positions from `positions` on do not share with those
  // below.
  void truncate(size_t positions);

  size_t capacity() const { return pages_.size() * kernels::kKvBlock; }

  // One entry for each page, for kernels::attend().
  std::span<const kernels::KvBlock> blocks(size_t layer) const {
    return blocks_[layer];
  }
  // Where the row of a position is stored. REQUIRES: position < capacity().
  std::byte* key_row(size_t layer, size_t position);
  std::byte* value_row(size_t layer, size_t position);

 private:
  KvPool& pool_;  // outlives the cache
  std::vector<std::byte*> pages_;
  std::vector<std::vector<kernels::KvBlock>> blocks_;  // [layer][page]
};

}  // namespace mlx_flash
