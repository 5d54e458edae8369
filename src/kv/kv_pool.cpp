// SPDX-License-Identifier: MIT
#include "kv/kv_pool.h"

#include <fmt/format.h>

namespace mlx_flash {

Result<BlockPool> BlockPool::create(Arena& arena, size_t stride, size_t max) {
  BlockPool pool;
  const size_t page = Arena::system_page_bytes();
  pool.arena_ = &arena;
  pool.stride_ = (stride + page - 1) / page * page;
  pool.max_ = max;
  FLASH_ASSIGN_OR_RETURN(pool.base_, arena.reserve(pool.stride_ * max));
  return pool;
}

Result<std::byte*> BlockPool::take() {
  if (!free_.empty()) {
    std::byte* block = free_.back();
    free_.pop_back();
    return block;
  }
  const bool again = !uncommitted_.empty();
  if (!again && next_ == max_) {
    return exhausted(fmt::format(
        "the KV cache is full: {} blocks; raise --ctx or --ram", max_));
  }
  std::byte* block = again ? uncommitted_.back() : base_ + next_ * stride_;
  FLASH_RETURN_IF_ERROR(arena_->commit(block, stride_));
  if (again) {
    uncommitted_.pop_back();
  } else {
    ++next_;
  }
  ++committed_;
  return block;
}

void BlockPool::trim() {
  for (std::byte* block : free_) {
    arena_->decommit(block, stride_);
    uncommitted_.push_back(block);
    --committed_;
  }
  free_.clear();
}

Result<std::unique_ptr<KvPool>> KvPool::create(Arena& arena,
                                               const KvLayout& layout,
                                               size_t blocks_max) {
  FLASH_ASSIGN_OR_RETURN(
      BlockPool full,
      BlockPool::create(arena, layout.full_stride(), blocks_max));
  FLASH_ASSIGN_OR_RETURN(
      BlockPool old,
      BlockPool::create(
          arena, layout.old_stride(), layout.quant_bits == 0 ? 0 : blocks_max));
  FLASH_ASSIGN_OR_RETURN(
      BlockPool raw,
      BlockPool::create(
          arena, layout.raw_stride(), layout.raw_keys ? blocks_max : 0));
  return std::unique_ptr<KvPool>(
      new KvPool(layout, std::move(full), std::move(old), std::move(raw)));
}

KvPool::~KvPool() {
  trim();
}

void KvPool::attach(KvFile* file, KvReader* reader, uint64_t ram_bytes) {
  file_ = file;
  reader_ = reader;
  old_limit_ = ram_bytes;
}

void KvPool::trim() {
  full_.trim();
  old_.trim();
  raw_.trim();
}

}  // namespace mlx_flash
