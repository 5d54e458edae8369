// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "kv/kv_cache.h"
#include "nn/stock_kv.h"

namespace mlx_flash {

class Core;

// The mutable part of a session: what its tokens left behind.
// `length` tokens, positions [0, length), have keys and values.
class SessionState {
 public:
  explicit SessionState(Core& core);

  size_t length() const { return length_; }
  // Forgets positions from `length` on. False if the cache cannot go back
  // (stock, past a sliding window): then everything is forgotten.
  bool truncate(size_t length);

  std::atomic<bool>& interrupted() { return interrupted_; }

 private:
  friend class Core;
  // Brings the caches back to length_, after a step that failed. As truncate().
  bool restore();

  std::unique_ptr<KvCache> kv_;  // fast
  nn::StockKv stock_kv_;         // stock
  size_t length_ = 0;
  std::atomic<bool> interrupted_{false};
};

}  // namespace mlx_flash
