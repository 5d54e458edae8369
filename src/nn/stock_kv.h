// SPDX-License-Identifier: MIT
#pragma once

// The KV cache of `stock`: mlx-lm's KVCache and RotatingKVCache (keep = 0),
// operation for operation (mlx_lm/models/cache.py), because the shapes and the
// order in which they store keys decide the last bits of MLX's attention.
//
// The engine's thread.

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nn/mlx.h"

namespace mlx_flash::nn {

// What scaled_dot_product_attention is given.
struct StockMask {
  std::string mode;  // "", "causal" or "array"
  std::optional<mx::array> array;
};

// Full caches grow by this many tokens (KVCache.step).
inline constexpr int kStockKvStep = 256;

class StockLayerKv {
 public:
  // `window`: 0 for a full cache, else RotatingKVCache(max_size = window).
  explicit StockLayerKv(int window) : max_size_(window) {}

  int offset() const { return offset_; }

  // The mask of the next `n` tokens.
  StockMask mask(int n, mx::Stream stream) const;

  // Stores [1, kv_heads, n, head_dim] and returns all that is to be seen.
  std::pair<mx::array, mx::array> update(const mx::array& keys,
                                         const mx::array& values,
                                         mx::Stream stream);

  // Drops the newest tokens. False if a rotating cache has wrapped: then what
  // the window has forgotten cannot come back, and nothing is changed.
  bool truncate(int offset);

 private:
  using KeysValues = std::pair<mx::array, mx::array>;
  KeysValues update_full(const mx::array& k, const mx::array& v, mx::Stream s);
  KeysValues update_concat(const mx::array& k,
                           const mx::array& v,
                           mx::Stream s);
  KeysValues update_in_place(const mx::array& k,
                             const mx::array& v,
                             mx::Stream s);
  void grow(const mx::array& k, const mx::array& v, int length, mx::Stream s);
  KeysValues seen(mx::Stream s) const;

  int max_size_ = 0;
  int offset_ = 0;
  int index_ = 0;  // where the ring is written next
  std::optional<mx::array> keys_;
  std::optional<mx::array> values_;
};

using StockKv = std::vector<StockLayerKv>;

// Drops the newest tokens of all layers. False if one cannot go back: then all
// are empty.
bool truncate(StockKv& kv, int offset);

}  // namespace mlx_flash::nn
