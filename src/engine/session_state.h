// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>

#include "kv/kv_cache.h"
#include "nn/stock_kv.h"

namespace mlx_flash {

class Core;

// The mutable part of a session: what its tokens left behind. Positions
// [0, length) have keys and values: those of its tokens, or, in the unbounded
// mode (docs/KV.md), of the first and the newest of them.
class SessionState {
 public:
  explicit SessionState(Core& core);

  size_t length() const { return length_; }
  // Tokens that were run to get here.
  size_t known() const { return length_ + forgotten_; }
  // Forgets tokens from `known` on. False if the cache cannot go back (stock,
  // past a sliding window; to before tokens were forgotten): then everything is
  // forgotten.
  bool truncate(size_t known);
  // In the unbounded mode, where the context is full: forgets 64 tokens.
  void make_way(Core& core);

  std::atomic<bool>& interrupted() { return interrupted_; }

 private:
  friend class Core;
  // Brings the caches back to length_, after a step that failed. As truncate().
  bool restore();

  std::unique_ptr<KvCache> kv_;  // fast
  nn::StockKv stock_kv_;         // stock
  size_t length_ = 0;
  size_t forgotten_ = 0;     // tokens
  size_t forgotten_at_ = 0;  // known() when the last of them were
  std::atomic<bool> interrupted_{false};
};

}  // namespace mlx_flash
