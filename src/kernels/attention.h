// SPDX-License-Identifier: MIT
#pragma once

// Causal attention of one query row over the blocks of a KV cache.
//
// Canonical order, a function of the query's position alone: keys are taken in
// blocks of kKvBlock consecutive positions that start at multiples of kKvBlock;
// inside a block scores are computed with the canonical dot product of
// kernels/matmul.h, the block's maximum and the sum of exponentials have a
// fixed order; blocks are combined one after the other with the online softmax
// (Milakov and Gimelshein, 2018; as in FlashAttention). So chunking, batching
// and threads change nothing. Never allocates. Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/weight_format.h"

namespace mlx_flash::kernels {

inline constexpr size_t kKvBlock = 64;  // positions

// One block of one layer: keys[position % kKvBlock][kv_head][head_dim] and
// values likewise (with value_dim), of `dtype` f32, f16 or bf16. With bits 8 or
// 4 both parts are as in kernels/kv_quant.h.
struct KvBlock {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  int bits = 0;
};

struct AttentionShape {
  size_t heads = 0;
  size_t kv_heads = 0;   // divides heads; query head h reads h / (heads / kv)
  size_t head_dim = 0;   // of queries and keys
  size_t value_dim = 0;  // of values and outputs
  float scale = 1;       // multiplies q . k
  DType kv_dtype = DType::kF32;
  // If positive, a score s becomes soft_cap tanh(s / soft_cap), computed as
  // soft_cap - 2 soft_cap / (exp(s * (2 / soft_cap)) + 1).
  float soft_cap = 0;
  // A value is the first value_dim numbers of its key: KvBlock::values is not
  // looked at. REQUIRES: value_dim <= head_dim.
  bool values_in_keys = false;
};

// The query at `position` sees keys first_key, ..., position (first_key =
// max(0, position - window + 1) for a sliding window, else 0). blocks[b] holds
// positions [b * kKvBlock, (b + 1) * kKvBlock); entries below
// first_key / kKvBlock are not read. For heads [head_begin, head_end):
// q points at head 0 [heads][head_dim], out at head 0 [heads][value_dim].
// `sinks` (one logit per head that joins the softmax but has no value) may be
// null. REQUIRES: head_dim, value_dim <= kHeadDimMax.
void attend(const AttentionShape& shape,
            const float* q,
            std::span<const KvBlock> blocks,
            size_t first_key,
            size_t position,
            const float* sinks,
            size_t head_begin,
            size_t head_end,
            float* out);

// The same walk in pieces, for blocks that are not in memory all at once:
// begin, any number of times join, end. The pieces follow one another in order
// of position; how they are cut changes no bit.
struct AttentionState {  // of one head: the running softmax
  float maximum;
  float sum;
};

// `states` points at head_begin's.
void attend_begin(const AttentionShape& shape,
                  const float* sinks,
                  size_t head_begin,
                  size_t head_end,
                  AttentionState* states,
                  float* out);

// Joins blocks[i], which holds positions from (first_block + i) * kKvBlock on,
// as far as they lie in [first_key, position]. A block with bits is seen whole.
void attend_join(const AttentionShape& shape,
                 const float* q,
                 std::span<const KvBlock> blocks,
                 size_t first_block,
                 size_t first_key,
                 size_t position,
                 size_t head_begin,
                 size_t head_end,
                 AttentionState* states,
                 float* out);

void attend_end(const AttentionShape& shape,
                size_t head_begin,
                size_t head_end,
                const AttentionState* states,
                float* out);

inline constexpr size_t kHeadDimMax = 1024;

// Narrows n floats to dtype (f32, f16 or bf16; round to nearest even) at dst,
// as KV rows are stored.
void store_kv(const float* x, size_t n, DType dtype, std::byte* dst);

}  // namespace mlx_flash::kernels
