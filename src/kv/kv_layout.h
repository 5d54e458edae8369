// SPDX-License-Identifier: MIT
#pragma once

// Shapes of a KV cache, and the one rule of sight (docs/KV.md).

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/weight_format.h"
#include "kernels/attention.h"
#include "kernels/kv_quant.h"

namespace mlx_flash {

// Newest positions that every query sees in full precision.
inline constexpr size_t kKvWindow = 128;
// Positions that truncate() can always take back without computing again.
inline constexpr size_t kKvRollback = 64;

// Positions at most that a session keeps in full precision while a prompt is
// read: the newest of before and of after the forward.
inline constexpr size_t kKvTailTokens =
    2 * (kKvWindow + kKvRollback + 2 * kernels::kKvBlock);

// Records of the ring through which blocks come back from the file: what keeps
// a disk busy while others are used.
inline constexpr size_t kKvRing = 12;

// Blocks are whole pages of memory and of the disk.
inline constexpr size_t kKvAlignment = 4096;

struct KvLayout {
  size_t layers = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;   // of keys
  size_t value_dim = 0;  // of values
  DType dtype = DType::kF16;
  int quant_bits = 0;  // of old blocks: 8, 4, or 0 for as they are
  // Sliding window of each layer in positions, 0: sees everything. Empty: none
  // slides.
  std::vector<uint32_t> windows = {};
  // Keys are kept before rope as well, in float32: for KvCache::forget_block().
  bool raw_keys = false;
  // A value is the first value_dim numbers of its key, and not stored again.
  bool values_in_keys = false;

  size_t key_row_bytes() const {
    return kv_heads * head_dim * dtype_bytes(dtype);
  }
  // What values take beside keys.
  size_t value_row_bytes() const {
    return values_in_keys ? 0 : kv_heads * value_dim * dtype_bytes(dtype);
  }
  // One layer's block in full precision: keys, then values.
  size_t full_bytes() const {
    return kernels::kKvBlock * (key_row_bytes() + value_row_bytes());
  }
  // The same as old blocks are kept.
  size_t old_key_bytes() const {
    return quant_bits == 0
               ? kernels::kKvBlock * key_row_bytes()
               : kernels::kv_quant_bytes(kv_heads, head_dim, quant_bits);
  }
  size_t old_bytes() const {
    if (quant_bits == 0) return full_bytes();
    return old_key_bytes() +
           (values_in_keys
                ? 0
                : kernels::kv_quant_bytes(kv_heads, value_dim, quant_bits));
  }
  // A block that lies at `memory`.
  kernels::KvBlock full_at(const std::byte* memory) const {
    return {.keys = memory,
            .values = values_in_keys
                          ? nullptr
                          : memory + kernels::kKvBlock * key_row_bytes()};
  }
  kernels::KvBlock old_at(const std::byte* memory) const {
    return {.keys = memory,
            .values = values_in_keys ? nullptr : memory + old_key_bytes(),
            .bits = quant_bits};
  }
  // Memory of a block.
  size_t full_stride() const { return whole_pages(full_bytes()); }
  size_t old_stride() const { return whole_pages(old_bytes()); }

  size_t raw_row_bytes() const { return kv_heads * head_dim * sizeof(float); }
  size_t raw_bytes() const { return kernels::kKvBlock * raw_row_bytes(); }
  size_t raw_stride() const { return raw_keys ? whole_pages(raw_bytes()) : 0; }

  uint32_t window(size_t layer) const {
    return layer < windows.size() ? windows[layer] : 0;
  }

  static size_t whole_pages(size_t n) {
    return (n + kKvAlignment - 1) / kKvAlignment * kKvAlignment;
  }
};

// How many blocks, from the first on, the query at `position` sees as old ones:
// block b is old exactly when (b + 1) * 64 <= position + 1 - W.
constexpr size_t kv_old_blocks(size_t position) {
  return position + 1 < kKvWindow
             ? 0
             : (position + 1 - kKvWindow) / kernels::kKvBlock;
}

// First block that the query at `position` sees at all.
constexpr size_t kv_first_block(size_t position, size_t window) {
  return window == 0 || position + 1 <= window
             ? 0
             : (position + 1 - window) / kernels::kKvBlock;
}

}  // namespace mlx_flash
