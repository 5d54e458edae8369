// SPDX-License-Identifier: MIT
#pragma once

// Hands the experts of a mixture-of-experts model to the compute.
//
// The unit of caching is a slab: all matrices of one expert of one layer (gate,
// up, down), wherever they lie in the files. It is handed out in pieces, row
// ranges of its matrices in their order: one piece, or several where the budget
// is too small for whole slabs. Rows are independent dot products, so neither
// pieces nor the order in which experts arrive changes a bit, as long as the
// consumer adds up its experts in an order of its own.
//
// A layer is a round:
//
//   begin(layer, experts)      what the router chose, each expert once
//   next() ... release()       until next() gives null; resident experts first,
//                              then the others as their reads come back
//   end()
//
// Pieces of one expert come in order; those of different experts may alternate.
// The consumer holds at most one piece at a time.
//
// Thread-compatible: one consumer. What ordinary runs use is CachedExperts.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/status.h"
#include "io/file.h"
#include "residency/expert_layer.h"

namespace mlx_flash {

class ExpertStream {
 public:
  // Rows [row_begin, row_end) of one matrix of the expert.
  struct Rows {
    uint32_t matrix = 0;  // index into ExpertLayer::matrices
    uint32_t row_begin = 0;
    uint32_t row_end = 0;
    const std::byte* part[kTilePartsMax] = {};
    const std::byte* bias = nullptr;  // of row_begin; null: none
  };

  struct Piece {
    uint32_t expert = 0;
    std::array<Rows, kExpertMatricesMax> rows;
    uint32_t rows_count = 0;
    bool last = false;  // of this expert
  };

  virtual ~ExpertStream() = default;

  // Says what the layer needs: reads of what is not resident are submitted at
  // once, at top priority. `rows[i]`: rows of x that experts[i] will multiply
  // (its weight for the cache's frequencies). REQUIRES: no round is open; each
  // expert at most once; experts.size() == rows.size().
  virtual Status begin(uint32_t layer,
                       std::span<const uint32_t> experts,
                       std::span<const uint32_t> rows) = 0;

  // The next piece that is in memory, waiting for the disk if none is; null
  // when all have been handed out. Valid until release().
  virtual Result<const Piece*> next() = 0;
  virtual void release() = 0;
  // Also after an error or an interruption, with pieces left.
  virtual void end() = 0;

  // What a later layer will probably need: read while the disk is idle, if the
  // gate finds that it pays. Never waits, never fails.
  virtual void look_ahead(uint32_t layer,
                          std::span<const uint32_t> experts) = 0;
  // Whether it would do anything now: a prediction costs a little, too.
  virtual bool wants_look_ahead() const { return true; }
};

// Puts a stream between `own`, which outlives it, and the compute: for tests.
using WrapExperts = std::function<std::unique_ptr<ExpertStream>(
    ExpertStream& own,
    std::span<const ExpertLayer> layers,
    std::span<const File> files)>;

}  // namespace mlx_flash
