// SPDX-License-Identifier: MIT

// What requests leave for later ones that begin the same.

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/core.h"

namespace mlx_flash {

Status Core::open_prefixes(const KvLayout& layout, const Hooks& hooks) {
  if (stock() || config_.kv_reuse_bytes == 0) return Status();
  std::unique_ptr<KvShelf> shelf;
  if (reuse_on_disk()) {
    const uint64_t limit = config_.kv_disk_limit;
    const uint64_t bytes = config_.kv_reuse_bytes;
    FLASH_ASSIGN_OR_RETURN(
        shelf,
        KvShelf::in_file(*queue_,
                         layout,
                         limit > 0 ? std::min(bytes, limit) : bytes,
                         {.folder = config_.kv_dir, .write = hooks.write_kv}));
  } else {
    FLASH_ASSIGN_OR_RETURN(
        shelf, KvShelf::in_memory(*arena_, layout, config_.kv_reuse_bytes));
  }
  prefixes_ = std::make_unique<KvPrefixes>(
      layout, std::move(shelf), [this](uint64_t bytes) {
        return bytes == 0 ? Status() : make_room(bytes, 0);
      });
  return Status();
}

// Memory that sessions and the budget need comes before what none has. False:
// there was nothing to give.
bool Core::drop_kept() {
  if (prefixes_ == nullptr || prefixes_->shelf().committed_bytes() == 0) {
    return false;
  }
  prefixes_->clear();
  return true;
}

void Core::begin_with(SessionState& state, std::span<const int32_t> tokens) {
  if (prefixes_ == nullptr) return;
  const KvPrefixes::Match match = prefixes_->find(tokens);
  if (match.length <= state.length()) return;
  state.truncate(0);
  const KvCache::Growth growth =
      state.kv_->growth_of(match.old_records, match.full_records);
  Status status = make_room(kv_pool_->full().bytes_missing(growth.full) +
                                kv_pool_->old().bytes_missing(growth.old),
                            0);
  if (status.ok()) status = prefixes_->adopt(match, *state.kv_);
  if (!status.ok()) {
    log_warning("an earlier request's beginning is computed again: " +
                status.message());
    return;
  }
  state.length_ = match.length;
  reused_tokens_ += match.length;
}

void Core::keep(const SessionState& state, std::span<const int32_t> tokens) {
  if (prefixes_ == nullptr || tokens.empty()) return;
  const Status status = prefixes_->keep(*state.kv_, tokens);
  if (status.ok()) return;
  const std::string text =
      "this request is not kept for later ones: " + status.message();
  if (status.code() == StatusCode::kExhausted) {
    log_debug(text);
  } else {
    log_warning(text);
  }
}

}  // namespace mlx_flash
