// SPDX-License-Identifier: MIT
#include "kv/kv_cache.h"

#include <fmt/format.h>

#include "base/check.h"

namespace mlx_flash {
namespace {

constexpr size_t kPageAlignment = 4096;

size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

}  // namespace

Result<std::unique_ptr<KvPool>> KvPool::create(Arena& arena,
                                               const KvLayout& layout,
                                               size_t pages_max) {
  std::unique_ptr<KvPool> pool(new KvPool(arena, layout));
  pool->stride_ = round_up(layout.page_bytes(), kPageAlignment);
  pool->pages_max_ = pages_max;
  FLASH_ASSIGN_OR_RETURN(pool->base_, arena.reserve(pool->stride_ * pages_max));
  // Lowest addresses are handed out first.
  pool->uncommitted_.reserve(pages_max);
  for (size_t i = pages_max; i > 0; --i) {
    pool->uncommitted_.push_back(pool->base_ + (i - 1) * pool->stride_);
  }
  return pool;
}

KvPool::~KvPool() {
  trim();
}

Result<std::byte*> KvPool::take() {
  if (!free_.empty()) {
    std::byte* page = free_.back();
    free_.pop_back();
    return page;
  }
  if (uncommitted_.empty()) {
    return exhausted(
        fmt::format("the KV cache is full: {} tokens; raise --ctx or --ram",
                    pages_max_ * kernels::kKvBlock));
  }
  std::byte* page = uncommitted_.back();
  FLASH_RETURN_IF_ERROR(arena_.commit(page, stride_));
  uncommitted_.pop_back();
  ++committed_;
  return page;
}

void KvPool::give(std::byte* page) {
  free_.push_back(page);
}

void KvPool::trim() {
  for (std::byte* page : free_) {
    arena_.decommit(page, stride_);
    uncommitted_.push_back(page);
    --committed_;
  }
  free_.clear();
}

KvCache::KvCache(KvPool& pool) : pool_(pool), blocks_(pool.layout().layers) {}

KvCache::~KvCache() {
  truncate(0);
}

Status KvCache::ensure(size_t positions) {
  const KvLayout& layout = pool_.layout();
  const size_t key_bytes = kernels::kKvBlock * layout.key_row_bytes();
  const size_t value_bytes = kernels::kKvBlock * layout.value_row_bytes();
  while (capacity() < positions) {
    FLASH_ASSIGN_OR_RETURN(std::byte * page, pool_.take());
    pages_.push_back(page);
    for (auto& blocks : blocks_) {
      blocks.push_back({.keys = page, .values = page + key_bytes});
      page += key_bytes + value_bytes;
    }
  }
  return Status();
}

void KvCache::truncate(size_t positions) {
  const size_t pages = (positions + kernels::kKvBlock - 1) / kernels::kKvBlock;
  while (pages_.size() > pages) {
    pool_.give(pages_.back());
    pages_.pop_back();
    for (auto& blocks : blocks_) blocks.pop_back();
  }
}

std::byte* KvCache::key_row(size_t layer, size_t position) {
  FLASH_CHECK(position < capacity());
  const kernels::KvBlock& block = blocks_[layer][position / kernels::kKvBlock];
  // The pool's memory is ours to write; blocks are const for the readers.
  return const_cast<std::byte*>(block.keys) +
         position % kernels::kKvBlock * pool_.layout().key_row_bytes();
}

std::byte* KvCache::value_row(size_t layer, size_t position) {
  FLASH_CHECK(position < capacity());
  const kernels::KvBlock& block = blocks_[layer][position / kernels::kKvBlock];
  return const_cast<std::byte*>(block.values) +
         position % kernels::kKvBlock * pool_.layout().value_row_bytes();
}

}  // namespace mlx_flash
