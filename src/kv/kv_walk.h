// SPDX-License-Identifier: MIT
#pragma once

// The old blocks of one layer in order, in pieces that are in memory: those
// that always are, and those that come back from the file while the ones before
// are used. When a layer's are all under way, the next layer's are asked for.

#include <array>
#include <span>

#include "base/status.h"
#include "kv/kv_cache.h"
#include "kv/kv_reader.h"

namespace mlx_flash {

class KvWalk {
 public:
  struct Piece {
    size_t first = 0;                          // index of the first block
    std::span<const kernels::KvBlock> blocks;  // empty: the end
  };

  // Blocks [first, end) of the layer.
  KvWalk(const KvCache& cache, size_t layer, size_t first, size_t end);

  // The next piece, valid until the next call. Fails with what the disk said.
  Result<Piece> next();

 private:
  void read_ahead();
  void match_ring();

  const KvCache& cache_;
  KvReader* reader_;
  size_t layer_;
  size_t at_;  // next block to hand out
  size_t end_;
  size_t asked_;     // blocks below are in memory or asked for
  size_t held_ = 0;  // records of the ring that the last piece is made of
  std::array<kernels::KvBlock, kKvRing> read_;
};

}  // namespace mlx_flash
