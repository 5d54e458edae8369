// SPDX-License-Identifier: MIT
#pragma once

// A cache into a session's file and back (kv/session_file.h).

#include <algorithm>
#include <cstddef>

#include "base/status.h"
#include "kv/kv_cache.h"
#include "kv/session_file.h"

namespace mlx_flash {

// Largest payload of a record.
inline size_t saved_payload_bytes(const KvLayout& layout) {
  return std::max({layout.full_bytes(),
                   layout.old_bytes(),
                   layout.raw_keys ? layout.raw_bytes() : 0});
}

// Memory for the index while a session is saved, at most: that of the save
// before, the new one, and its pages.
uint64_t saved_index_bytes(const KvLayout& layout, const SavedSession& session);

// What a saved cache must agree in to be taken up: every shape and type, and
// the rule of sight.
uint64_t saved_layout(const KvLayout& layout);

// Puts all blocks that the query at `length` or one of the roll-back sees, save
// those the writer's base has already.
// Blocks in the cache's file are read back through its ring.
Status save_blocks(const KvCache& cache, size_t length, SessionWriter& writer);

// Fills an empty cache with the reader's records. On failure it is empty again.
// REQUIRES: room for KvCache::growth_of() in the arena.
Status load_blocks(KvCache& cache, size_t length, SessionReader& reader);

}  // namespace mlx_flash
