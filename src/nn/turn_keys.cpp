// SPDX-License-Identifier: MIT
#include "nn/turn_keys.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/attention.h"
#include "kernels/kv_quant.h"
#include "kernels/vector_ops.h"

namespace mlx_flash::nn {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;

// One block of one layer; `table` as Rope::fill() gives it for the positions.
void turn_block(const AttentionConfig& config,
                KvCache& kv,
                size_t block,
                size_t rows,
                const float* table,
                std::vector<float>& row,
                std::vector<std::byte>& keys) {
  const KvLayout& layout = kv.layout();
  const size_t width = layout.kv_heads * layout.head_dim;
  row.resize(width);
  keys.resize(kBlock * layout.key_row_bytes());
  for (size_t i = 0; i < rows; ++i) {
    const float* raw = kv.raw_row(config.layer, block * kBlock + i);
    std::copy(raw, raw + width, row.begin());
    if (config.rope != nullptr) {
      const Rope& rope = *config.rope;
      for (size_t h = 0; h < layout.kv_heads; ++h) {
        kernels::rope(row.data() + h * layout.head_dim,
                      table + i * rope.dims(),
                      rope.dims(),
                      rope.traditional());
      }
    }
    kernels::store_kv(row.data(),
                      width,
                      layout.dtype,
                      keys.data() + i * layout.key_row_bytes());
  }
  kv.replace_keys(config.layer, block, rows, keys.data());
}

}  // namespace

void turn_keys(Context& context,
               std::span<const AttentionConfig* const> layers,
               KvCache& kv,
               size_t first_block,
               size_t length) {
  const size_t blocks = (length + kBlock - 1) / kBlock;
  if (blocks <= first_block) return;
  const auto turn = [&](size_t begin, size_t end, int) {
    std::vector<float> table;
    std::vector<float> row;
    std::vector<std::byte> keys;
    for (size_t b = first_block + begin; b < first_block + end; ++b) {
      const size_t rows = std::min(kBlock, length - b * kBlock);
      std::vector<uint32_t> positions(rows);
      std::iota(positions.begin(),
                positions.end(),
                static_cast<uint32_t>(b * kBlock));
      const Rope* filled = nullptr;
      for (const AttentionConfig* layer : layers) {
        if (!kv.has_raw(layer->layer, b * kBlock)) continue;
        if (layer->rope != nullptr && layer->rope != filled) {
          table.resize(rows * layer->rope->dims());
          layer->rope->fill(positions, table.data());
          filled = layer->rope;
        }
        turn_block(*layer, kv, b, rows, table.data(), row, keys);
      }
    }
  };
  context.pool->parallel_for(blocks - first_block, 1, turn);
}

}  // namespace mlx_flash::nn
