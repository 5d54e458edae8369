// SPDX-License-Identifier: MIT
#include "engine/core.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "base/check.h"
#include "nn/turn_keys.h"

namespace mlx_flash {

SessionState::SessionState(Core& core) {
  if (core.stock()) {
    stock_kv_ = core.model().new_stock_kv();
  } else {
    kv_ = std::make_unique<KvCache>(*core.kv_pool_);
  }
}

bool SessionState::truncate(size_t known) {
  if (known >= this->known()) return true;
  // Of fewer tokens others are forgotten than are now.
  const bool same = known >= forgotten_at_;
  length_ = same ? known - forgotten_ : 0;
  return restore() && (same || known == 0);
}

void SessionState::make_way(Core& core) {
  const uint64_t keep = core.config().kv_keep_tokens;
  if (keep == 0 || length_ < core.plan().context) return;
  const size_t block = (keep + kernels::kKvBlock - 1) / kernels::kKvBlock;
  forgotten_at_ = known();
  kv_->forget_block(block);
  length_ -= kernels::kKvBlock;
  forgotten_ += kernels::kKvBlock;
  nn::turn_keys(core.context_, core.model().attentions(), *kv_, block, length_);
}

bool SessionState::restore() {
  if (kv_) {
    // Blocks that are gone cannot come back: the caller computes them again.
    const bool kept = kv_->truncate(length_);
    if (!kept) length_ = 0;
    if (length_ == 0) forgotten_ = forgotten_at_ = 0;
    return kept;
  }
  if (nn::truncate(stock_kv_, static_cast<int>(length_))) return true;
  // A rotated window cannot go back: all is forgotten, the caller replays.
  length_ = 0;
  return false;
}

Core::~Core() {
  if (experts_) learnt_.save(experts_->learnt());
}

size_t Core::prefill_rows() const {
  if (!stock()) return plan_.prefill_rows;
  constexpr size_t kMlxLmPrefillStep = 2048;
  return config_.prefill_rows != 0 ? config_.prefill_rows : kMlxLmPrefillStep;
}

StreamCounters Core::counters() const {
  const TileStream::Stats tiles = tiles_->stats();
  const RowReader::Stats& rows = rows_->stats();
  const ExpertCounters experts = expert_counters();
  return {.passes = tiles.passes,
          .tiles_streamed = tiles.tiles_streamed,
          .tiles_pinned = tiles.tiles_pinned,
          .misses = tiles.misses,
          .ring_wraps = tiles.ring_wraps,
          .bytes_read = tiles.bytes_read + rows.bytes_read + experts.bytes_read,
          .io_wait_s = tiles.wait_seconds + rows.wait_seconds + experts.wait_s +
                       (kv_reader_ ? kv_reader_->wait_seconds() : 0),
          .compute_s = context_.compute_seconds,
          .paced_passes = tiles.controller.paced_passes,
          .pace_trials = tiles.controller.trials,
          .registered_reads = queue_->stats().registered,
          .kv_ram_bytes = kv_pool_ ? kv_pool_->committed_bytes() : 0,
          .kv_disk_bytes = kv_file_ ? kv_file_->bytes_used() : 0,
          .kv_bytes_written = kv_file_ ? kv_file_->bytes_written() : 0,
          .kv_bytes_read = kv_reader_ ? kv_reader_->bytes_read() : 0,
          .kv_reuse_bytes = prefixes_ ? prefixes_->shelf().bytes_used() : 0,
          .kv_reused_tokens = reused_tokens_,
          .experts = experts};
}

ExpertCounters Core::expert_counters() const {
  if (!experts_) return {};
  const CachedExperts::Stats stats = experts_->stats();
  return {.used = stats.pieces,
          .hits = stats.hits,
          .used_bytes = stats.bytes,
          .hit_bytes = stats.hit_bytes,
          .evictions = stats.evictions,
          .bytes_read = stats.bytes_read,
          .ahead_bytes = stats.ahead_bytes,
          .ahead_used_bytes = stats.ahead_used_bytes,
          .ahead_wasted_bytes = stats.ahead_wasted_bytes,
          .ahead_trials = stats.gate.trials,
          .ahead_passes = stats.gate.open_passes,
          .ahead_gain = stats.gate.gain,
          .cache_bytes = experts_->resident_bytes(),
          .wait_s = stats.wait_seconds};
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

Status Core::forward(std::span<const BatchRow> batch,
                     const RowFn& row,
                     bool normalised,
                     const LayerFn& layer) {
  if (batch.empty()) return Status();
  FLASH_RETURN_IF_ERROR(check(batch));
  follow_memory();
  // A budget that shrank may allow fewer rows than the caller was told.
  const size_t rows_max =
      stock() ? batch.size() : std::max<size_t>(1, plan_.prefill_rows);
  std::vector<std::pair<SessionState*, size_t>> before;
  for (const BatchRow& r : batch) {
    if (r.position == r.session->length_) {
      before.emplace_back(r.session, r.session->length_);
    }
  }
  context_.layer_done = layer;
  Status status;
  for (size_t i = 0; i < batch.size() && status.ok(); i += rows_max) {
    const size_t rows = std::min(rows_max, batch.size() - i);
    status = forward_once(batch.subspan(i, rows), i, row, normalised);
  }
  context_.layer_done = nullptr;
  if (status.ok()) return status;
  for (const auto& [session, length] : before) {
    session->length_ = length;
    session->restore();
  }
  return status;
}

Status Core::forward_once(std::span<const BatchRow> batch,
                          size_t first,
                          const RowFn& row,
                          bool normalised) {
  const double start = queue_->now();
  Status status = ensure_activations(batch);
  if (status.ok()) status = ensure_kv(batch);
  if (status.ok()) {
    const RowFn shifted = [&](size_t i, std::span<const float> logits) {
      row(first + i, logits);
    };
    // MLX reports its own failures by exceptions; this is where they end.
    try {
      status = run(batch, row ? shifted : row, normalised);
    } catch (const std::exception& error) {
      status = internal_error(fmt::format("MLX: {}", error.what()));
    }
  }
  if (trace_) {
    trace_->add({.start = start,
                 .end = queue_->now(),
                 .what = batch.size(),
                 .kind = Trace::Kind::kForward});
  }
  if (!status.ok()) return status;
  for (const BatchRow& r : batch) r.session->length_ = r.position + 1;
  for (const nn::KvSpan& span : spans_) span.kv->commit(span.end);
  return status;
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
      status = run_head(*hidden, batch, wanted, row, normalised);
    }
  }
  context_.interrupted = &never_;
  tiles_->end_pass();
  return status;
}

// The head's output is far wider than anything before it: a few rows at a
// time.
Status Core::run_head(const mx::array& hidden,
                      std::span<const BatchRow> batch,
                      std::span<const uint32_t> wanted,
                      const RowFn& row,
                      bool normalised) {
  const size_t rows_max = std::max<size_t>(1, plan_.logit_rows);
  const mx::Stream stream = context_.mx_stream;
  const size_t width = vocab_size();
  while (!wanted.empty()) {
    const auto some = wanted.first(std::min(rows_max, wanted.size()));
    size_t most = 0;
    for (const uint32_t i : some) {
      if (batch[i].best != nullptr) most = std::max(most, batch[i].best->most);
    }
    std::optional<nn::Ranking> ranking;
    if (most > 0 && !stock()) {
      ranking.emplace(some.size(), most, pool_->threads());
    }
    mx::array logits =
        model_->logits(context_, hidden, some, ranking ? &*ranking : nullptr);
    if (stock() && normalised) {
      logits =
          mx::subtract(logits, mx::logsumexp(logits, -1, true, stream), stream);
    }
    mx::array values =
        mx::contiguous(mx::astype(logits, mx::float32, stream), false, stream);
    values.eval();
    FLASH_RETURN_IF_ERROR(context_.failure);
    for (size_t i = 0; i < some.size(); ++i) {
      if (BestTokens* best = batch[some[i]].best; ranking && best != nullptr) {
        const auto ranked = ranking->join(i);
        const auto kept = ranked.first(std::min(best->most, ranked.size()));
        best->list.assign(kept.begin(), kept.end());
      }
      row(some[i], {values.data<float>() + i * width, width});
    }
    wanted = wanted.subspan(some.size());
  }
  return Status();
}

}  // namespace mlx_flash
