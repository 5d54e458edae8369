// SPDX-License-Identifier: MIT
#include "engine/core.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/size.h"
#include "kernels/matmul.h"

namespace mlx_flash {

SessionState::SessionState(Core& core) {
  if (core.stock()) {
    stock_kv_ = core.model().new_stock_kv();
  } else {
    kv_ = std::make_unique<KvCache>(*core.kv_pool_);
  }
}

bool SessionState::truncate(size_t length) {
  if (length >= length_) return true;
  length_ = length;
  return restore();
}

bool SessionState::restore() {
  if (kv_) {
    if (kv_->truncate(length_)) return true;
    // Blocks that are gone cannot come back: the caller computes them again.
    length_ = 0;
    return false;
  }
  if (nn::truncate(stock_kv_, static_cast<int>(length_))) return true;
  // A rotated window cannot go back: all is forgotten, the caller replays.
  length_ = 0;
  return false;
}

Core::~Core() = default;

size_t Core::prefill_rows() const {
  if (!stock()) return plan_.prefill_rows;
  constexpr size_t kMlxLmPrefillStep = 2048;
  return config_.prefill_rows != 0 ? config_.prefill_rows : kMlxLmPrefillStep;
}

StreamCounters Core::counters() const {
  const TileStream::Stats tiles = tiles_->stats();
  const RowReader::Stats& rows = rows_->stats();
  return {.passes = tiles.passes,
          .tiles_streamed = tiles.tiles_streamed,
          .tiles_pinned = tiles.tiles_pinned,
          .misses = tiles.misses,
          .ring_wraps = tiles.ring_wraps,
          .bytes_read = tiles.bytes_read + rows.bytes_read,
          .io_wait_s = tiles.wait_seconds + rows.wait_seconds +
                       (kv_reader_ ? kv_reader_->wait_seconds() : 0),
          .compute_s = context_.compute_seconds,
          .kv_ram_bytes = kv_pool_ ? kv_pool_->committed_bytes() : 0,
          .kv_disk_bytes = kv_file_ ? kv_file_->bytes_used() : 0,
          .kv_bytes_written = kv_file_ ? kv_file_->bytes_written() : 0,
          .kv_bytes_read = kv_reader_ ? kv_reader_->bytes_read() : 0};
}

Status Core::check(std::span<const BatchRow> batch) const {
  for (const BatchRow& row : batch) {
    if (row.token >= vocab_size()) {
      return invalid_input(fmt::format(
          "token {} is not in the vocabulary of {}", row.token, vocab_size()));
    }
    if (row.position >= plan_.context) {
      return Status(
          StatusCode::kInvalidInput,
          fmt::format("position {} is beyond the context of {} tokens; raise "
                      "--ctx or --ram",
                      row.position,
                      plan_.context));
    }
  }
  return Status();
}

Status Core::no_room() const {
  return exhausted(
      fmt::format("the budget of {} has no room for more context; raise --ram",
                  format_size(plan_.ram_bytes)));
}

// Takes memory from the pinned tiles until the arena has `bytes` free, and then
// up to `ahead` more for the next time: each move re-plans all tiles.
Status Core::make_room(uint64_t bytes, uint64_t ahead) {
  const uint64_t free = arena_->free_bytes();
  if (free >= bytes) return Status();
  const uint64_t missing = bytes - free;
  if (missing > pin_bytes_) {
    return no_room();
  }
  const uint64_t step = std::min(pin_bytes_, missing + ahead);
  pin_bytes_ -= step;
  return tiles_->set_pins(
      choose_pins(*schedule_, pin_bytes_, arena_->page_bytes()));
}

Status Core::ensure_kv(std::span<const BatchRow> batch) {
  if (stock()) return ensure_stock_kv(batch);
  spans_.clear();
  for (const BatchRow& row : batch) {
    KvCache* kv = row.session->kv_.get();
    const auto known = std::find_if(spans_.begin(),
                                    spans_.end(),
                                    [&](const auto& s) { return s.kv == kv; });
    if (known != spans_.end()) {
      known->end = row.position + 1;
    } else {
      spans_.push_back({kv, row.position, row.position + 1});
    }
  }
  KvCache::Growth growth;
  for (const nn::KvSpan& span : spans_) {
    const KvCache::Growth more = span.kv->growth(span.begin, span.end);
    growth.full += more.full;
    growth.old += more.old;
  }
  const uint64_t bytes = kv_pool_->full().bytes_missing(growth.full) +
                         kv_pool_->old().bytes_missing(growth.old);
  if (bytes == 0) return Status();
  const KvLayout& layout = kv_pool_->layout();
  return make_room(bytes, layout.layers * layout.full_stride());
}

// Stock caches live in MLX's memory: the arena's budget shrinks as they grow.
Status Core::ensure_stock_kv(std::span<const BatchRow> batch) {
  constexpr uint64_t kStep = nn::kStockKvStep;
  const uint64_t tokens = (batch.back().position / kStep + 1) * kStep;
  const uint64_t needed = tokens * costs_.kv_bytes_per_token;
  if (needed <= stock_kv_bytes_) return Status();
  const uint64_t grow = needed - stock_kv_bytes_;
  FLASH_RETURN_IF_ERROR(make_room(grow, grow));
  arena_->set_budget(arena_->budget_bytes() - grow);
  stock_kv_bytes_ = needed;
  return Status();
}

void Core::reserve_scratch(size_t rows) {
  context_.reserve_scratch(model_->scratch_floats(rows),
                           model_->prepared_bytes(rows),
                           pool_->threads(),
                           kernels::matmul_scratch_bytes());
  scratch_rows_ = rows;
}

// What a forward needs beyond one token's is lent by the pinned tiles: they are
// read again, once, where a share set aside for prompts would be read for every
// token.
Status Core::ensure_activations(std::span<const BatchRow> batch) {
  if (stock()) return Status();
  const auto wanted = static_cast<uint64_t>(
      std::count_if(batch.begin(), batch.end(), [](const BatchRow& r) {
        return r.want_logits;
      }));
  const uint64_t logits = std::min<uint64_t>(wanted, plan_.logit_rows);
  const auto beyond = [](uint64_t rows) {
    return rows > kDecodeRows ? rows - kDecodeRows : 0;
  };
  const uint64_t needed =
      beyond(batch.size()) * costs_.activation_bytes_per_row +
      beyond(logits) * costs_.activation_bytes_per_logit_row;
  if (needed == 0) return return_activations();
  if (needed > lent_bytes_) {
    const uint64_t more = needed - lent_bytes_;
    const uint64_t budget = arena_->budget_bytes();
    if (budget < in_use() + more) return no_room();
    FLASH_RETURN_IF_ERROR(share_out(budget - more));
    lent_bytes_ = needed;
  }
  if (batch.size() > scratch_rows_) reserve_scratch(batch.size());
  return Status();
}

Status Core::return_activations() {
  if (lent_bytes_ == 0) return Status();
  reserve_scratch(kDecodeRows);
  kv_pool_->trim();
  return_free_memory();  // before pins grow into it
  const uint64_t budget = arena_->budget_bytes() + lent_bytes_;
  lent_bytes_ = 0;
  return share_out(budget);
}

// Ring and KV: what the arena cannot give back at once.
uint64_t Core::in_use() const {
  const uint64_t kv = kv_pool_ ? kv_pool_->committed_bytes() : 0;
  const uint64_t ring = kv_file_ ? kKvRing * kv_file_->record_bytes() : 0;
  return plan_.ring_bytes + kv + ring;
}

// A new budget for the arena: pins get what ring and KV leave, the KV that the
// plan sets aside included.
Status Core::share_out(uint64_t budget) {
  const uint64_t others =
      std::max(in_use(), plan_.ring_bytes + (stock() ? 0 : plan_.kv_bytes));
  pin_bytes_ = budget > others ? budget - others : 0;
  arena_->set_budget(std::max(budget, arena_->budget_bytes()));
  Status moved = tiles_->set_pins(
      choose_pins(*schedule_, pin_bytes_, arena_->page_bytes()));
  arena_->set_budget(budget);
  return moved;
}

Status Core::forward(std::span<const BatchRow> batch,
                     const RowFn& row,
                     bool normalised,
                     const LayerFn& layer) {
  if (batch.empty()) return Status();
  FLASH_RETURN_IF_ERROR(check(batch));
  const double start = queue_->now();
  Status status = ensure_activations(batch);
  if (status.ok()) status = ensure_kv(batch);
  if (status.ok()) {
    // MLX reports its own failures by exceptions; this is where they end.
    context_.layer_done = layer;
    try {
      status = run(batch, row, normalised);
    } catch (const std::exception& error) {
      status = internal_error(fmt::format("MLX: {}", error.what()));
    }
  }
  context_.layer_done = nullptr;
  if (trace_) {
    trace_->add({.start = start,
                 .end = queue_->now(),
                 .what = batch.size(),
                 .kind = Trace::Kind::kForward});
  }
  if (!status.ok()) {
    for (const BatchRow& r : batch) r.session->restore();
    return status;
  }
  for (const BatchRow& r : batch) r.session->length_ = r.position + 1;
  for (const nn::KvSpan& span : spans_) span.kv->commit(span.end);
  return Status();
}

Status Core::run(std::span<const BatchRow> batch,
                 const RowFn& row,
                 bool normalised) {
  std::vector<uint32_t> tokens;
  std::vector<nn::RowPlace> places;
  std::vector<uint32_t> wanted;
  for (size_t i = 0; i < batch.size(); ++i) {
    FLASH_CHECK(!stock() || batch[i].session == batch[0].session);
    tokens.push_back(batch[i].token);
    places.push_back({batch[i].session->kv_.get(), batch[i].position});
    if (batch[i].want_logits) wanted.push_back(static_cast<uint32_t>(i));
  }
  nn::Step step;
  step.tokens = tokens;
  step.rows = places;
  step.caches = spans_;
  if (stock()) step.stock_kv = &batch[0].session->stock_kv_;

  context_.failure = Status();
  context_.interrupted = &batch[0].session->interrupted();
  std::optional<mx::array> hidden = model_->forward(context_, step);
  Status status = context_.failure;
  if (hidden && status.ok()) {
    if (wanted.empty() || !row) {
      hidden->eval();
      status = context_.failure;
    } else {
      status = run_head(*hidden, wanted, row, normalised);
    }
  }
  context_.interrupted = &never_;
  tiles_->end_pass();
  return status;
}

// The head's output is far wider than anything before it: a few rows at a
// time.
Status Core::run_head(const mx::array& hidden,
                      std::span<const uint32_t> wanted,
                      const RowFn& row,
                      bool normalised) {
  const size_t rows_max = std::max<size_t>(1, plan_.logit_rows);
  const mx::Stream stream = context_.mx_stream;
  const size_t width = vocab_size();
  while (!wanted.empty()) {
    const auto some = wanted.first(std::min(rows_max, wanted.size()));
    mx::array logits = model_->logits(context_, hidden, some);
    if (stock() && normalised) {
      logits =
          mx::subtract(logits, mx::logsumexp(logits, -1, true, stream), stream);
    }
    mx::array values =
        mx::contiguous(mx::astype(logits, mx::float32, stream), false, stream);
    values.eval();
    FLASH_RETURN_IF_ERROR(context_.failure);
    for (size_t i = 0; i < some.size(); ++i) {
      row(some[i], {values.data<float>() + i * width, width});
    }
    wanted = wanted.subspan(some.size());
  }
  return Status();
}

}  // namespace mlx_flash
