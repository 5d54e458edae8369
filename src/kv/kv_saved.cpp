// SPDX-License-Identifier: MIT
#include "kv/kv_saved.h"

#include <cstring>
#include <vector>

#include "kv/kv_file.h"
#include "kv/kv_walk.h"

namespace mlx_flash {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;

// Raised when what is stored for the same tokens changes.
constexpr uint64_t kVersion = 2;

// Rows past the last position hold what others left there.
void clear_rows(const KvLayout& layout, size_t rows, std::byte* block) {
  const size_t keys = layout.key_row_bytes();
  const size_t values = layout.value_row_bytes();
  std::memset(block + rows * keys, 0, (kBlock - rows) * keys);
  std::byte* first = block + kBlock * keys;
  std::memset(first + rows * values, 0, (kBlock - rows) * values);
}

// Whether the writer has the block already: the same tokens gave it.
bool kept(const KvVersion& version, SessionWriter& writer) {
  return (version.block + 1) * kBlock <= writer.common() &&
         writer.keep(version);
}

Status save_old(const KvCache& cache,
                uint32_t layer,
                size_t end,
                SessionWriter& writer) {
  const size_t bytes = cache.layout().old_bytes();
  const auto there = [&](size_t b) {
    return cache.old(layer)[b].keys != nullptr ||
           cache.places(layer)[b].generation != 0;
  };
  // What is new is at the end: the beginning is not even read.
  size_t first = 0;
  for (; first < end; ++first) {
    const KvVersion version{layer, static_cast<uint32_t>(first), true};
    if (there(first) && !kept(version, writer)) break;
  }
  for (KvWalk walk(cache, layer, first, end);;) {
    FLASH_ASSIGN_OR_RETURN(const KvWalk::Piece piece, walk.next());
    if (piece.blocks.empty()) return Status();
    for (size_t i = 0; i < piece.blocks.size(); ++i) {
      // What has left a sliding window is nowhere.
      if (piece.blocks[i].keys == nullptr) continue;
      std::memcpy(writer.payload(), piece.blocks[i].keys, bytes);
      const auto block = static_cast<uint32_t>(piece.first + i);
      FLASH_RETURN_IF_ERROR(writer.put({layer, block, true}, bytes));
    }
  }
}

Status save_full(const KvCache& cache,
                 uint32_t layer,
                 size_t length,
                 SessionWriter& writer) {
  const auto full = cache.full(layer);
  const auto old = cache.old(layer);
  const size_t end = cache.kept_old(layer, length);
  const size_t bytes = cache.layout().full_bytes();
  for (size_t b = 0; b * kBlock < length; ++b) {
    if (full[b].keys == nullptr) continue;
    if (b < end && old[b].keys == full[b].keys) continue;
    const auto block = static_cast<uint32_t>(b);
    if (kept({layer, block, false}, writer)) continue;
    std::memcpy(writer.payload(), full[b].keys, bytes);
    if ((b + 1) * kBlock > length) {
      clear_rows(cache.layout(), length - b * kBlock, writer.payload());
    }
    FLASH_RETURN_IF_ERROR(writer.put({layer, block, false}, bytes));
  }
  return Status();
}

// Keys before rope, of a cache that may forget.
Status save_raw(const KvCache& cache,
                uint32_t layer,
                size_t length,
                SessionWriter& writer) {
  const KvLayout& layout = cache.layout();
  for (size_t b = 0; layout.raw_keys && b * kBlock < length; ++b) {
    if (!cache.has_raw(layer, b * kBlock)) continue;
    const KvVersion version{
        .layer = layer, .block = static_cast<uint32_t>(b), .raw = true};
    if (kept(version, writer)) continue;
    std::memcpy(
        writer.payload(), cache.raw_row(layer, b * kBlock), layout.raw_bytes());
    if ((b + 1) * kBlock > length) {
      const size_t known = (length - b * kBlock) * layout.raw_row_bytes();
      std::memset(writer.payload() + known, 0, layout.raw_bytes() - known);
    }
    FLASH_RETURN_IF_ERROR(writer.put(version, layout.raw_bytes()));
  }
  return Status();
}

}  // namespace

uint64_t saved_index_bytes(const KvLayout& layout,
                           const SavedSession& session) {
  constexpr uint64_t kRecordBytes = 32;
  const uint64_t blocks = session.length / kBlock + kKvTailTokens / kBlock;
  return 3 * (layout.layers * blocks * kRecordBytes + session.note.size() +
              session.tokens.size() * sizeof(int32_t));
}

uint64_t saved_layout(const KvLayout& layout) {
  std::vector<uint64_t> fields = {kVersion,
                                  kBlock,
                                  kKvWindow,
                                  layout.layers,
                                  layout.kv_heads,
                                  layout.head_dim,
                                  layout.value_dim,
                                  layout.values_in_keys ? 1u : 0u,
                                  layout.raw_keys ? 1u : 0u,
                                  static_cast<uint64_t>(layout.dtype),
                                  static_cast<uint64_t>(layout.quant_bits)};
  for (size_t i = 0; i < layout.layers; ++i) fields.push_back(layout.window(i));
  return kv_checksum(reinterpret_cast<const std::byte*>(fields.data()),
                     fields.size() * sizeof(uint64_t));
}

Status save_blocks(const KvCache& cache, size_t length, SessionWriter& writer) {
  for (size_t i = 0; i < cache.layout().layers; ++i) {
    const auto layer = static_cast<uint32_t>(i);
    FLASH_RETURN_IF_ERROR(
        save_old(cache, layer, cache.kept_old(i, length), writer));
    FLASH_RETURN_IF_ERROR(save_full(cache, layer, length, writer));
    FLASH_RETURN_IF_ERROR(save_raw(cache, layer, length, writer));
  }
  return Status();
}

Status load_blocks(KvCache& cache, size_t length, SessionReader& reader) {
  const size_t most = saved_payload_bytes(cache.layout());
  Status status;
  const uint64_t records = reader.records();
  for (uint64_t i = 0; i < records && status.ok(); ++i) {
    const auto record = reader.next(most);
    status = record.ok() ? cache.adopt(record->version,
                                       {record->payload, record->bytes},
                                       length)
                         : record.status();
  }
  if (!status.ok()) {
    (void)cache.truncate(0);
    return status;
  }
  return cache.adopted(length)
             ? Status()
             : io_error("a block is missing in the saved session");
}

}  // namespace mlx_flash
