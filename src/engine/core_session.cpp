// SPDX-License-Identifier: MIT

// A session's cache to a file and back.

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "engine/core.h"
#include "kv/kv_saved.h"

namespace mlx_flash {
namespace {

// Another model, or another version of it, differs nearly everywhere: a few
// pages of each file tell, where all of them would be a whole pass.
constexpr uint64_t kSamples = 64;
constexpr size_t kSampleBytes = 4096;

// Of the index of a saved session, what the reserve has room for.
constexpr uint64_t kIndexBytesSmall = 2'000'000;

uint64_t checksum(const void* data, size_t n) {
  return kv_checksum(static_cast<const std::byte*>(data), n);
}

}  // namespace

Result<uint64_t> Core::fingerprint() const {
  const std::string config = checkpoint_->config().dump();
  std::vector<uint64_t> parts = {checksum(config.data(), config.size())};
  std::array<std::byte, kSampleBytes> page;
  for (const File& file : files_) {
    parts.push_back(file.size());
    const auto n =
        static_cast<size_t>(std::min<uint64_t>(kSampleBytes, file.size()));
    for (uint64_t i = 0; i < kSamples; ++i) {
      const uint64_t at = (file.size() - n) / (kSamples - 1) * i;
      FLASH_RETURN_IF_ERROR(file.read(at, std::span(page).first(n)));
      file.drop_cached(at, n);
      parts.push_back(checksum(page.data(), n));
    }
  }
  return checksum(parts.data(), parts.size() * sizeof(uint64_t));
}

// Which tokens are forgotten depends on the context and on what is kept.
uint64_t Core::session_layout() const {
  const uint64_t layout = saved_layout(kv_pool_->layout());
  if (config_.kv_keep_tokens == 0) return layout;
  const std::array<uint64_t, 3> fields = {
      layout, plan_.context, (config_.kv_keep_tokens + 63) / kernels::kKvBlock};
  return checksum(fields.data(), sizeof fields);
}

Result<SavedMark> Core::save(SessionState& state,
                             SavedSession saved,
                             const SavedMark& base,
                             const std::string& path) {
  const KvLayout& layout = kv_pool_->layout();
  FLASH_ASSIGN_OR_RETURN(saved.model, fingerprint());
  saved.layout = session_layout();
  saved.length = state.length();
  saved.forgotten = state.forgotten_;
  saved.forgotten_at = state.forgotten_at_;
  // Its index is put together in memory; pins give way to a long one.
  const uint64_t index = saved_index_bytes(layout, saved);
  if (index > kIndexBytesSmall) (void)make_room(index, 0);
  FLASH_ASSIGN_OR_RETURN(
      const auto writer,
      SessionWriter::create(path,
                            saved,
                            {.payload_bytes = saved_payload_bytes(layout),
                             .base = base,
                             .write = write_kv_}));
  FLASH_RETURN_IF_ERROR(save_blocks(*state.kv_, saved.length, *writer));
  FLASH_RETURN_IF_ERROR(writer->commit());
  return writer->mark();
}

Status Core::load(SessionState& state, SessionReader& reader) {
  const SavedSession& saved = reader.session();
  if (saved.layout != session_layout()) {
    return io_error(
        "it was saved with another --kv-quant, --kv-type, --kv-keep (with it, "
        "--ctx), or version");
  }
  const KvCache::Growth growth = state.kv_->growth_of(
      reader.old_records(), reader.full_records(), reader.raw_records());
  const uint64_t bytes = kv_pool_->full().bytes_missing(growth.full) +
                         kv_pool_->old().bytes_missing(growth.old) +
                         kv_pool_->raw().bytes_missing(growth.raw);
  Status room = make_room(bytes, 0);
  if (!room.ok() && drop_kept()) room = make_room(bytes, 0);
  FLASH_RETURN_IF_ERROR(room);
  FLASH_RETURN_IF_ERROR(load_blocks(*state.kv_, saved.length, reader));
  state.length_ = saved.length;
  state.forgotten_ = saved.forgotten;
  state.forgotten_at_ = saved.forgotten_at;
  return Status();
}

}  // namespace mlx_flash
