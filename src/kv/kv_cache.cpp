// SPDX-License-Identifier: MIT
#include "kv/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kv/kv_reader.h"

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
  const bool all = shape.quant_bits == 0 && pool_.file() == nullptr;
  const size_t kept = all ? fresh : std::min(fresh, tail);
  Growth growth{.full = shape.layers * kept + (fresh - kept),
                .raw = shape.raw_keys ? shape.layers * fresh : 0};
  const uint64_t room = pool_.old_limit() - pool_.old_bytes;
  if (shape.quant_bits == 0) {
    if (all) return growth;
    const size_t more = shape.layers * (fresh - kept);
    growth.full += std::min<uint64_t>(more, room / pool_.full().stride());
    return growth;
  }
  const size_t visible = end > 0 ? kv_old_blocks(end - 1) : 0;
  for (const Layer& layer : layers_) {
    growth.old += visible > layer.sealed ? visible - layer.sealed : 0;
  }
  growth.old = std::min<uint64_t>(growth.old, room / pool_.old().stride());
  return growth;
}

void KvCache::resize(Layer& layer, size_t blocks) {
  layer.full.resize(blocks);
  layer.old.resize(blocks);
  layer.places.resize(blocks);
  layer.raw.resize(blocks);
}

Status KvCache::open(size_t index, size_t begin, size_t end) {
  Layer& layer = layers_[index];
  resize(layer, std::max(layer.full.size(), blocks_for(end)));
  for (size_t b = begin / kBlock; b < blocks_for(end); ++b) {
    if (layer.full[b].keys != nullptr) continue;
    FLASH_ASSIGN_OR_RETURN(std::byte * block, pool_.full().take());
    layer.full[b] = layout().full_at(block);
  }
  for (size_t b = begin / kBlock; layout().raw_keys && b < blocks_for(end);
       ++b) {
    if (layer.raw[b] != nullptr) continue;
    FLASH_ASSIGN_OR_RETURN(layer.raw[b], pool_.raw().take());
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
    FLASH_RETURN_IF_ERROR(seal_block(index, layer.sealed));
  }
  return Status();
}

bool KvCache::room_for(uint64_t bytes) const {
  return pool_.old_bytes + bytes <= pool_.old_limit();
}

void KvCache::make_old(const kernels::KvBlock& full, std::byte* out) const {
  const KvLayout& shape = layout();
  if (shape.quant_bits == 0) {
    std::memcpy(out, full.keys, shape.full_bytes());  // values behind keys
    return;
  }
  kernels::quantize_kv(full.keys,
                       shape.dtype,
                       shape.kv_heads,
                       shape.head_dim,
                       shape.quant_bits,
                       out);
  if (shape.values_in_keys) return;
  kernels::quantize_kv(full.values,
                       shape.dtype,
                       shape.kv_heads,
                       shape.value_dim,
                       shape.quant_bits,
                       out + shape.old_key_bytes());
}

Status KvCache::seal_block(size_t index, size_t b) {
  Layer& layer = layers_[index];
  const KvLayout& shape = layout();
  const kernels::KvBlock& full = layer.full[b];
  FLASH_CHECK(full.keys != nullptr);
  if (shape.quant_bits == 0 && room_for(pool_.full().stride())) {
    layer.old[b] = full;
    pool_.old_bytes += pool_.full().stride();
    return Status();
  }
  return keep_old(index, b, [&](std::byte* out) { make_old(full, out); });
}

// An old version with memory of its own, or in the file.
Status KvCache::keep_old(size_t index, size_t b, const FillFn& fill) {
  Layer& layer = layers_[index];
  const KvLayout& shape = layout();
  if (shape.quant_bits != 0 && room_for(pool_.old().stride())) {
    FLASH_ASSIGN_OR_RETURN(std::byte * old, pool_.old().take());
    fill(old);
    layer.old[b] = shape.old_at(old);
    pool_.old_bytes += pool_.old().stride();
    return Status();
  }
  if (pool_.file() == nullptr) {
    return exhausted("the KV cache is full: raise --ram, or lower --ctx");
  }
  fill(pool_.file()->payload());
  FLASH_ASSIGN_OR_RETURN(layer.places[b],
                         pool_.file()->put(static_cast<uint32_t>(index),
                                           static_cast<uint32_t>(b)));
  ++layer.on_disk;
  return Status();
}

bool KvCache::spare(const Layer& layer, size_t b) const {
  return b < layer.sealed && layer.full[b].keys != nullptr &&
         layer.full[b].keys != layer.old[b].keys;
}

void KvCache::drop_full(Layer& layer, size_t b) {
  if (layer.full[b].keys == nullptr) return;
  if (layer.old[b].keys == layer.full[b].keys) drop_old(layer, b);
  pool_.full().give(memory(layer.full[b]));
  layer.full[b] = {};
}

void KvCache::drop_old(Layer& layer, size_t b) {
  if (layer.places[b].generation != 0) {
    pool_.file()->give(layer.places[b]);
    layer.places[b] = {};
    --layer.on_disk;
  }
  if (layer.old[b].keys == nullptr) return;
  if (layer.old[b].bits != 0) {
    pool_.old().give(memory(layer.old[b]));
    pool_.old_bytes -= pool_.old().stride();
  } else {
    pool_.old_bytes -= pool_.full().stride();
  }
  layer.old[b] = {};
}

void KvCache::drop_raw(Layer& layer, size_t b) {
  if (layer.raw[b] != nullptr) pool_.raw().give(layer.raw[b]);
  layer.raw[b] = nullptr;
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
        drop_raw(layer, b);
      } else if (spare(layer, b)) {
        drop_full(layer, b);
      }
    }
    for (size_t b = gone; b > 0; --b) {
      if (layer.old[b - 1].keys == nullptr &&
          layer.places[b - 1].generation == 0) {
        break;
      }
      drop_full(layer, b - 1);  // where it is the same memory
      drop_old(layer, b - 1);
      drop_raw(layer, b - 1);
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
    const bool exact = seen_old || layout().quant_bits == 0;
    if (exact && layer.places[b].generation != 0) continue;
    if ((seen_old ? layer.old[b] : layer.full[b]).keys == nullptr) return false;
  }
  return true;
}

// What the query at `length` sees in full precision and only the file has.
Status KvCache::bring_back(Layer& layer, size_t window, size_t length) {
  const size_t first =
      std::max(kv_first_block(length, window), kv_old_blocks(length));
  for (size_t b = first; b < blocks_for(length); ++b) {
    if (layer.full[b].keys != nullptr) continue;
    FLASH_ASSIGN_OR_RETURN(std::byte * block, pool_.full().take());
    layer.full[b] = layout().full_at(block);
    layer.dropped = std::min(layer.dropped, b);
    KvReader& reader = *pool_.reader();
    reader.drop();  // what was read ahead for a longer walk
    reader.submit(layer.places[b]);
    const auto payload = reader.wait(0);
    if (payload.ok()) std::memcpy(block, *payload, layout().full_bytes());
    reader.drop();
    FLASH_RETURN_IF_ERROR(payload.status());
  }
  return Status();
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
    for (size_t b = blocks; b < layer.full.size(); ++b) {
      drop_old(layer, b);
      drop_full(layer, b);
      drop_raw(layer, b);
    }
    resize(layer, std::min(layer.full.size(), blocks));
    layer.dropped = std::min(layer.dropped, blocks);
  }
  for (size_t i = 0; i < layers_.size() && length > 0; ++i) {
    Layer& layer = layers_[i];
    if (!bring_back(layer, layout().window(i), length).ok()) {
      (void)truncate(0);
      return false;
    }
    // An old version of the last block holds positions that are forgotten.
    if (length % kBlock != 0) drop_old(layer, blocks - 1);
  }
  for (Layer& layer : layers_) {
    layer.sealed = std::min(layer.sealed, length / kBlock);
  }
  return kept;
}

void KvCache::forget_block(size_t block) {
  FLASH_CHECK(layout().raw_keys && pool_.file() == nullptr);
  const auto at = static_cast<ptrdiff_t>(block);
  for (Layer& layer : layers_) {
    FLASH_CHECK(block < layer.sealed);
    drop_full(layer, block);
    drop_old(layer, block);
    drop_raw(layer, block);
    layer.full.erase(layer.full.begin() + at);
    layer.old.erase(layer.old.begin() + at);
    layer.places.erase(layer.places.begin() + at);
    layer.raw.erase(layer.raw.begin() + at);
    --layer.sealed;
    layer.dropped -= layer.dropped > block ? 1 : 0;
  }
}

float* KvCache::raw_row(size_t layer, size_t position) {
  std::byte* block = layers_[layer].raw[position / kBlock];
  FLASH_CHECK(block != nullptr);
  return reinterpret_cast<float*>(block +
                                  position % kBlock * layout().raw_row_bytes());
}

void KvCache::replace_keys(size_t index,
                           size_t b,
                           size_t rows,
                           const std::byte* keys) {
  const KvLayout& shape = layout();
  const Layer& layer = layers_[index];
  if (layer.full[b].keys != nullptr) {
    std::memcpy(memory(layer.full[b]), keys, rows * shape.key_row_bytes());
  }
  if (layer.old[b].bits != 0) {
    kernels::quantize_kv(keys,
                         shape.dtype,
                         shape.kv_heads,
                         shape.head_dim,
                         shape.quant_bits,
                         memory(layer.old[b]));
  }
}

std::byte* KvCache::key_row(size_t layer, size_t position) {
  const kernels::KvBlock& block = layers_[layer].full[position / kBlock];
  FLASH_CHECK(block.keys != nullptr);
  return memory(block) + position % kBlock * layout().key_row_bytes();
}

std::byte* KvCache::value_row(size_t layer, size_t position) {
  FLASH_CHECK(!layout().values_in_keys);
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

size_t KvCache::kept_old(size_t index, size_t length) const {
  return std::min(kv_old_blocks(length), layers_[index].sealed);
}

KvCache::Growth KvCache::growth_of(uint64_t old_records,
                                   uint64_t full_records,
                                   uint64_t raw_records) const {
  const bool same = layout().quant_bits == 0;
  const size_t stride = same ? pool_.full().stride() : pool_.old().stride();
  const uint64_t room = (pool_.old_limit() - pool_.old_bytes) / stride;
  const size_t old = std::min(old_records, room);
  return same ? Growth{.full = old + full_records, .raw = raw_records}
              : Growth{.full = full_records, .old = old, .raw = raw_records};
}

Status KvCache::adopt(const KvVersion& version,
                      std::span<const std::byte> payload,
                      size_t length) {
  const KvLayout& shape = layout();
  const size_t b = version.block;
  const size_t blocks = blocks_for(length);
  if (version.layer >= layers_.size() || b >= blocks ||
      (version.old && b >= kv_old_blocks(length)) ||
      (version.raw && !shape.raw_keys) ||
      payload.size() != (version.raw   ? shape.raw_bytes()
                         : version.old ? shape.old_bytes()
                                       : shape.full_bytes())) {
    return io_error("a block that cannot be part of the saved session");
  }
  Layer& layer = layers_[version.layer];
  resize(layer, blocks);
  const auto fill = [&](std::byte* out) {
    std::memcpy(out, payload.data(), payload.size());
  };
  if (version.raw) {
    if (layer.raw[b] != nullptr) {
      return io_error("a block twice in the saved session");
    }
    FLASH_ASSIGN_OR_RETURN(layer.raw[b], pool_.raw().take());
    fill(layer.raw[b]);
    return Status();
  }
  const bool shared =
      version.old && shape.quant_bits == 0 && room_for(pool_.full().stride());
  if (version.old &&
      (layer.old[b].keys != nullptr || layer.places[b].generation != 0)) {
    return io_error("a block twice in the saved session");
  }
  if (version.old) layer.sealed = std::max(layer.sealed, b + 1);
  if (version.old && !shared) return keep_old(version.layer, b, fill);
  if (layer.full[b].keys != nullptr) {
    // As an old one in memory it is there already.
    if (layer.old[b].keys == layer.full[b].keys) return Status();
    return io_error("a block twice in the saved session");
  }
  FLASH_ASSIGN_OR_RETURN(std::byte * block, pool_.full().take());
  fill(block);
  layer.full[b] = layout().full_at(block);
  if (shared) {
    layer.old[b] = layer.full[b];
    pool_.old_bytes += pool_.full().stride();
  }
  return Status();
}

bool KvCache::adopted(size_t length) {
  // Keys before rope belong to every block that is there.
  for (const Layer& layer : layers_) {
    for (size_t b = 0; layout().raw_keys && b < layer.full.size(); ++b) {
      const bool there =
          layer.full[b].keys != nullptr || layer.old[b].keys != nullptr;
      if (there && layer.raw[b] == nullptr) {
        (void)truncate(0);
        return false;
      }
    }
  }
  // A sliding layer begins with what was saved of it.
  for (Layer& layer : layers_) {
    size_t first = 0;
    while (first < layer.full.size() && layer.full[first].keys == nullptr &&
           layer.old[first].keys == nullptr &&
           layer.places[first].generation == 0) {
      ++first;
    }
    layer.sealed = std::max(layer.sealed, first);
  }
  if (!truncate(length)) return false;
  if (length > 0) commit(length);
  return true;
}

}  // namespace mlx_flash
