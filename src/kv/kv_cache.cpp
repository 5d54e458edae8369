// SPDX-License-Identifier: MIT
#include "kv/kv_cache.h"

#include <algorithm>

#include "base/check.h"

namespace mlx_flash {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;

size_t blocks_for(size_t positions) {
  return (positions + kBlock - 1) / kBlock;
}

// The earliest position that a session of `length` goes back to at once.
size_t earliest(size_t length) {
  return length > kKvRollback ? length - kKvRollback : 0;
}

std::byte* memory(const kernels::KvBlock& block) {
  // The pool's memory is ours to write; blocks are const for the readers.
  return const_cast<std::byte*>(block.keys);
}

}  // namespace

KvCache::KvCache(KvPool& pool) : pool_(pool), layers_(pool.layout().layers) {}

KvCache::~KvCache() {
  (void)truncate(0);
}

KvCache::Growth KvCache::growth(size_t begin, size_t end) const {
  const KvLayout& shape = layout();
  const size_t fresh = blocks_for(end) - blocks_for(begin);
  // In full precision all layers keep what is new; when old blocks are made of
  // it, one layer at a time does, and all keep a tail (both its ends cut a
  // block).
  const size_t tail = kKvRollback / kBlock + kKvWindow / kBlock + 2;
  const size_t kept = shape.quant_bits == 0 ? fresh : std::min(fresh, tail);
  Growth growth{.full = shape.layers * kept + (fresh - kept)};
  if (shape.quant_bits == 0 || end == 0) return growth;
  const size_t visible = kv_old_blocks(end - 1);
  for (const Layer& layer : layers_) {
    growth.old += visible > layer.sealed ? visible - layer.sealed : 0;
  }
  return growth;
}

Status KvCache::open(size_t index, size_t begin, size_t end) {
  Layer& layer = layers_[index];
  layer.full.resize(std::max(layer.full.size(), blocks_for(end)));
  layer.old.resize(layer.full.size());
  const size_t key_bytes = kBlock * layout().key_row_bytes();
  for (size_t b = begin / kBlock; b < blocks_for(end); ++b) {
    if (layer.full[b].keys != nullptr) continue;
    FLASH_ASSIGN_OR_RETURN(std::byte * block, pool_.full().take());
    layer.full[b] = {.keys = block, .values = block + key_bytes};
  }
  return Status();
}

Status KvCache::seal(size_t index, size_t begin, size_t end) {
  Layer& layer = layers_[index];
  const size_t visible = kv_old_blocks(end - 1);
  const size_t first = kv_first_block(earliest(begin), layout().window(index));
  for (; layer.sealed < visible; ++layer.sealed) {
    // What has left a sliding window is not looked at again.
    if (layer.sealed < first) continue;
    FLASH_RETURN_IF_ERROR(seal_block(layer, layer.sealed));
  }
  return Status();
}

Status KvCache::seal_block(Layer& layer, size_t b) {
  const KvLayout& shape = layout();
  const kernels::KvBlock& full = layer.full[b];
  FLASH_CHECK(full.keys != nullptr);
  if (shape.quant_bits == 0) {
    layer.old[b] = full;
    return Status();
  }
  FLASH_ASSIGN_OR_RETURN(std::byte * old, pool_.old().take());
  std::byte* values = old + shape.old_key_bytes();
  kernels::quantize_kv(full.keys,
                       shape.dtype,
                       shape.kv_heads,
                       shape.head_dim,
                       shape.quant_bits,
                       old);
  kernels::quantize_kv(full.values,
                       shape.dtype,
                       shape.kv_heads,
                       shape.value_dim,
                       shape.quant_bits,
                       values);
  layer.old[b] = {.keys = old, .values = values, .bits = shape.quant_bits};
  return Status();
}

bool KvCache::spare(const Layer& layer, size_t b) const {
  return b < layer.sealed && layer.full[b].keys != nullptr &&
         layer.full[b].keys != layer.old[b].keys;
}

void KvCache::drop_full(Layer& layer, size_t b) {
  if (layer.full[b].keys == nullptr) return;
  if (layer.old[b].keys == layer.full[b].keys) layer.old[b] = {};
  pool_.full().give(memory(layer.full[b]));
  layer.full[b] = {};
}

void KvCache::drop_old(Layer& layer, size_t b) {
  if (layer.old[b].keys != nullptr && layer.old[b].bits != 0) {
    pool_.old().give(memory(layer.old[b]));
  }
  layer.old[b] = {};
}

void KvCache::release(size_t index, size_t begin, size_t end) {
  Layer& layer = layers_[index];
  // The tail of before stays in case the forward fails, that of after because
  // the next queries see it.
  const size_t before = kv_old_blocks(earliest(begin));
  const size_t after = kv_old_blocks(earliest(end));
  for (size_t b = layer.dropped; b < after; ++b) {
    if (b >= before && b <= begin / kBlock) continue;
    if (spare(layer, b)) drop_full(layer, b);
  }
}

void KvCache::commit(size_t length) {
  const size_t back = earliest(length);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    // Queries of a sliding window look no further back.
    const size_t gone =
        std::min(kv_first_block(back, layout().window(i)), layer.full.size());
    const size_t old = std::min(kv_old_blocks(back), layer.full.size());
    for (; layer.dropped < std::max(gone, old); ++layer.dropped) {
      const size_t b = layer.dropped;
      if (b < gone) {
        drop_full(layer, b);
      } else if (spare(layer, b)) {
        drop_full(layer, b);
      }
    }
    for (size_t b = gone; b > 0; --b) {
      if (layer.old[b - 1].keys == nullptr) break;
      drop_old(layer, b - 1);
    }
    layer.sealed = std::max(layer.sealed, gone);
  }
}

bool KvCache::can_go_back(const Layer& layer,
                          size_t window,
                          size_t length) const {
  if (length == 0) return true;
  const size_t first = kv_first_block(length, window);
  const size_t old = kv_old_blocks(length);
  for (size_t b = first; b < blocks_for(length); ++b) {
    const bool seen_old = b < old && b < layer.sealed;
    if ((seen_old ? layer.old[b] : layer.full[b]).keys == nullptr) return false;
  }
  return true;
}

bool KvCache::truncate(size_t length) {
  bool kept = true;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    if (layer.full.size() < blocks_for(length) ||
        !can_go_back(layer, layout().window(i), length)) {
      kept = length == 0;
    }
  }
  if (!kept) length = 0;
  const size_t blocks = blocks_for(length);
  for (Layer& layer : layers_) {
    for (size_t b = length / kBlock; b < layer.full.size(); ++b) {
      drop_old(layer, b);  // holds positions that are forgotten
      if (b >= blocks) drop_full(layer, b);
    }
    layer.full.resize(std::min(layer.full.size(), blocks));
    layer.old.resize(layer.full.size());
    layer.sealed = std::min(layer.sealed, length / kBlock);
    layer.dropped = std::min(layer.dropped, blocks);
  }
  return kept;
}

std::byte* KvCache::key_row(size_t layer, size_t position) {
  const kernels::KvBlock& block = layers_[layer].full[position / kBlock];
  FLASH_CHECK(block.keys != nullptr);
  return memory(block) + position % kBlock * layout().key_row_bytes();
}

std::byte* KvCache::value_row(size_t layer, size_t position) {
  const kernels::KvBlock& block = layers_[layer].full[position / kBlock];
  FLASH_CHECK(block.keys != nullptr);
  return const_cast<std::byte*>(block.values) +
         position % kBlock * layout().value_row_bytes();
}

size_t KvCache::blocks_full() const {
  size_t n = 0;
  for (const Layer& layer : layers_) {
    n += static_cast<size_t>(
        std::count_if(layer.full.begin(), layer.full.end(), [](const auto& b) {
          return b.keys != nullptr;
        }));
  }
  return n;
}

size_t KvCache::blocks_old() const {
  size_t n = 0;
  for (const Layer& layer : layers_) {
    n += static_cast<size_t>(
        std::count_if(layer.old.begin(), layer.old.end(), [](const auto& b) {
          return b.bits != 0;
        }));
  }
  return n;
}

}  // namespace mlx_flash
