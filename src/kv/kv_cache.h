// SPDX-License-Identifier: MIT
#pragma once

// Keys and values of the tokens of a session, for the fast kernels: the newest
// in full precision, older blocks as KvLayout::quant_bits says, in memory as
// far as the pool allows and in its file beyond (docs/KV.md).
//
// What a query sees is a function of its position alone (kv_old_blocks). So a
// block that rows of one forward see both ways exists twice until that forward
// is over.
//
// One forward of rows [begin, end), for each layer in order: open, write the
// rows, seal, attend (full(), KvWalk), release; at its end commit. A forward
// that failed is undone by truncate(begin).
//
// Thread-compatible: one thread changes it; while it does not, any thread may
// read blocks and write rows of different positions.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/status.h"
#include "kv/kv_file.h"
#include "kv/kv_pool.h"
#include "kv/session_file.h"

namespace mlx_flash {

class KvCache {
 public:
  explicit KvCache(KvPool& pool);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // Blocks that a forward of positions [begin, end) holds at a time, at most,
  // beyond those of now.
  struct Growth {
    size_t full = 0;
    size_t old = 0;
    size_t raw = 0;  // keys before rope
  };
  Growth growth(size_t begin, size_t end) const;

  // Room in a layer for the rows of positions [begin, end). Fails with
  // kExhausted and keeps what there was.
  Status open(size_t layer, size_t begin, size_t end);
  // Makes the old versions that the queries [begin, end) see. Their rows and
  // all before them are written.
  Status seal(size_t layer, size_t begin, size_t end);
  // Gives back what only queries of this forward needed.
  void release(size_t layer, size_t begin, size_t end);
  // The forward is over: `length` positions are known.
  void commit(size_t length);

  // Forgets what positions from `length` on left behind; may read blocks back
  // from the file. False if a block that the query at `length` sees in full
  // precision, or at all, is gone: then everything is forgotten.
  bool truncate(size_t length);

  // Forgets the positions of one block; those behind it move a block forward.
  // Then keys of blocks from `block` on are those of their old positions: see
  // nn::turn_keys(). REQUIRES: layout().raw_keys, all in memory, between two
  // forwards, and queries to come see the newest kKvWindow behind the block.
  void forget_block(size_t block);

  // Takes up one version of a block of a cache that was saved at `length`, in
  // the order old before full; an empty cache only. kIoError for what cannot
  // be part of it, kExhausted where there is no room.
  Status adopt(const KvVersion& version,
               std::span<const std::byte> payload,
               size_t length);
  // All are there. False if one is missing that the next query sees: then
  // everything is forgotten.
  bool adopted(size_t length);
  // Blocks that adopting so many records takes, at most.
  Growth growth_of(uint64_t old_records,
                   uint64_t full_records,
                   uint64_t raw_records = 0) const;
  // How many blocks of a layer, from the first on, are kept as old ones for
  // the query at `length`.
  size_t kept_old(size_t layer, size_t length) const;

  // Where the row of a position is stored. REQUIRES: open; a value that is no
  // part of its key (layout().values_in_keys).
  std::byte* key_row(size_t layer, size_t position);
  std::byte* value_row(size_t layer, size_t position);
  // Its keys before rope, float32. REQUIRES: open, layout().raw_keys.
  float* raw_row(size_t layer, size_t position);
  const float* raw_row(size_t layer, size_t position) const {
    return const_cast<KvCache*>(this)->raw_row(layer, position);
  }
  // The first `rows` rows of a block's keys, in its versions; a block that has
  // an old one is whole. Different blocks may be replaced at the same time.
  void replace_keys(size_t layer,
                    size_t block,
                    size_t rows,
                    const std::byte* keys);
  // Whether the layer has the position's, or has slid past it.
  bool has_raw(size_t layer, size_t position) const {
    return layers_[layer].raw[position / kernels::kKvBlock] != nullptr;
  }

  // Full-precision blocks by index; null keys where there is none.
  std::span<const kernels::KvBlock> full(size_t layer) const {
    return layers_[layer].full;
  }
  // Old blocks by index; null keys where they are in the file.
  std::span<const kernels::KvBlock> old(size_t layer) const {
    return layers_[layer].old;
  }
  // Where old blocks lie in the file; generation 0: they do not.
  std::span<const KvPlace> places(size_t layer) const {
    return layers_[layer].places;
  }
  // No query sees anything but full(): old versions are the same memory.
  bool plain(size_t layer) const {
    return layout().quant_bits == 0 && layers_[layer].on_disk == 0;
  }
  const KvLayout& layout() const { return pool_.layout(); }
  KvPool& pool() const { return pool_; }

  // Counted for statistics: blocks of all layers.
  size_t blocks_full() const;
  size_t blocks_old() const;

 private:
  struct Layer {
    // One entry for each block; keys point at its memory, null: none.
    std::vector<kernels::KvBlock> full;
    std::vector<kernels::KvBlock> old;
    std::vector<KvPlace> places;
    std::vector<std::byte*> raw;
    size_t sealed = 0;   // old versions below this block have been made
    size_t dropped = 0;  // full versions below this block are gone
    size_t on_disk = 0;
  };

  // Fills the memory of an old block.
  using FillFn = std::function<void(std::byte* out)>;

  Status seal_block(size_t index, size_t block);
  Status keep_old(size_t index, size_t block, const FillFn& fill);
  void make_old(const kernels::KvBlock& full, std::byte* out) const;
  // Whether old blocks may take `bytes` more of memory.
  bool room_for(uint64_t bytes) const;
  void drop_full(Layer& layer, size_t block);
  void drop_old(Layer& layer, size_t block);
  void drop_raw(Layer& layer, size_t block);
  void resize(Layer& layer, size_t blocks);
  // Whether the full version of a sealed block is a copy that can go.
  bool spare(const Layer& layer, size_t block) const;
  bool can_go_back(const Layer& layer, size_t window, size_t length) const;
  Status bring_back(Layer& layer, size_t window, size_t length);

  KvPool& pool_;  // outlives the cache
  std::vector<Layer> layers_;
};

}  // namespace mlx_flash
