// SPDX-License-Identifier: MIT
#pragma once

// Keys of a cache for positions that have changed (docs/KV.md, the unbounded
// mode). The engine's thread, between two forwards.

#include <cstddef>
#include <span>

#include "kv/kv_cache.h"
#include "nn/context.h"
#include "nn/layers.h"

namespace mlx_flash::nn {

// Makes the keys of all positions [first_block * 64, length) from those before
// rope, full and old versions, as a forward that writes them there would: the
// same arithmetic gives the same bits. `layers` are all of the model's.
void turn_keys(Context& context,
               std::span<const AttentionConfig* const> layers,
               KvCache& kv,
               size_t first_block,
               size_t length);

}  // namespace mlx_flash::nn
