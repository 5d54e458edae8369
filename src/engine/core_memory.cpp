// SPDX-License-Identifier: MIT

// The budget while running: shares that move between weights (pinned tiles and
// experts), KV and activations, and a whole that follows the user and the
// machine.

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "base/memory.h"
#include "base/size.h"
#include "engine/core.h"
#include "kernels/matmul.h"
#include "nn/mlx.h"

namespace mlx_flash {
namespace {

constexpr double kSampleEveryS = 0.25;

LiveBudget::Sample sample_machine() {
  const auto machine = machine_memory();
  const auto process = process_memory();
  const CgroupMemory cgroup = cgroup_memory();
  LiveBudget::Sample sample;
  sample.limit_bytes = cgroup.limit_bytes;
  if (machine.ok() && process.ok()) {
    sample.allowed_bytes =
        allowed_ram(*machine, cgroup, process->resident_bytes);
  }
  sample.stalled_s = memory_stall_seconds().value_or(0);
  return sample;
}

}  // namespace

Status Core::no_room() const {
  return exhausted(
      fmt::format("the budget of {} has no room for more context; raise --ram",
                  format_size(plan_.ram_bytes)));
}

// Takes memory from the weights until the arena has `bytes` free, and then up
// to `ahead` more for the next time: each move re-plans all tiles.
Status Core::make_room(uint64_t bytes, uint64_t ahead) {
  // Pins may take less than their share: giving up some of it need not give up
  // a tile.
  for (;;) {
    const uint64_t promised = weights_->promised_bytes();
    const uint64_t unused = arena_->free_bytes();
    const uint64_t free = unused - std::min(unused, promised);
    if (free >= bytes) return Status();
    const uint64_t missing = bytes - free;
    const uint64_t lendable =
        weights_->bytes() - std::min(weights_->bytes(), weights_->bytes_min());
    if (missing > lendable) return no_room();
    FLASH_RETURN_IF_ERROR(weights_->move(weights_->bytes() -
                                         std::min(lendable, missing + ahead)));
  }
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
    growth.raw += more.raw;
  }
  const uint64_t bytes = kv_pool_->full().bytes_missing(growth.full) +
                         kv_pool_->old().bytes_missing(growth.old) +
                         kv_pool_->raw().bytes_missing(growth.raw);
  if (bytes == 0) return Status();
  const KvLayout& layout = kv_pool_->layout();
  const uint64_t ahead = layout.layers * layout.full_stride();
  const Status room = make_room(bytes, ahead);
  // More sessions than the plan knows of.
  return room.ok() || !drop_kept() ? room : make_room(bytes, ahead);
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

// What a forward needs beyond one token's is lent by the weights: they are read
// again, once, where a share set aside for prompts would be read for every
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
    const uint64_t least = weights_->bytes_min() + more;
    if (budget < in_use() + least) (void)drop_kept();
    if (budget < in_use() + least) return no_room();
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
  // Before pins grow into it. MLX keeps what its arrays gave back, for others
  // of that size: rows of a prompt, which no token needs.
  mx::clear_cache();
  return_free_memory();
  const uint64_t budget = arena_->budget_bytes() + lent_bytes_;
  lent_bytes_ = 0;
  return share_out(budget);
}

// Ring and KV: what the arena cannot give back at once.
uint64_t Core::in_use() const {
  const uint64_t kv = kv_pool_ ? kv_pool_->committed_bytes() : 0;
  const uint64_t ring = kv_file_ ? kKvRing * kv_file_->record_bytes() : 0;
  const uint64_t kept = prefixes_ ? prefixes_->shelf().committed_bytes() : 0;
  return plan_.ring_bytes + kv + ring + kept;
}

// A new budget for the arena: weights get what ring and KV leave, the KV that
// the plan sets aside included.
Status Core::share_out(uint64_t budget) {
  const uint64_t others =
      std::max(in_use(), plan_.ring_bytes + (stock() ? 0 : plan_.kv_bytes));
  arena_->set_budget(std::max(budget, arena_->budget_bytes()));
  Status moved = weights_->move(budget > others ? budget - others : 0);
  arena_->set_budget(budget);
  return moved;
}

// What of a budget is the arena's: ring, pins and (fast) KV, whatever their
// shares are at the time.
uint64_t Core::arena_budget(uint64_t ram_bytes) const {
  const uint64_t others = runtime_bytes_ + costs_.small_tensor_bytes +
                          plan_.activation_bytes + plan_.expert_table_bytes +
                          (stock() ? stock_kv_bytes_ : 0);
  if (others >= ram_bytes) return 0;
  const uint64_t rest = ram_bytes - others;
  return rest - page_table_bytes(rest, Arena::system_page_bytes());
}

Status Core::move_budget(uint64_t ram_bytes) {
  FLASH_RETURN_IF_ERROR(return_activations());
  Limits changed = limits(ram_bytes, runtime_bytes_);
  changed.ring_slots = plan_.ring_slots;
  FLASH_ASSIGN_OR_RETURN(
      Plan plan,
      ::mlx_flash::make_plan(*schedule_,
                             costs_,
                             changed,
                             expert_schedule_ ? &*expert_schedule_ : nullptr));
  const Plan before = std::exchange(plan_, std::move(plan));
  const uint64_t arena_bytes = arena_budget(ram_bytes);
  const uint64_t least = weights_->bytes_min();
  if (in_use() + least > arena_bytes) (void)drop_kept();
  if (in_use() + least > arena_bytes) {
    const uint64_t missing = in_use() + least - arena_bytes;
    plan_ = before;
    return invalid_input(fmt::format(
        "{} is too little for what is in use ({} more); /reset frees the "
        "context",
        format_size(ram_bytes),
        format_size(missing)));
  }
  return share_out(arena_bytes);
}

Status Core::set_ram(uint64_t ram_bytes) {
  const bool automatic = ram_bytes == 0;
  const uint64_t asked = automatic ? available_ram() : ram_bytes;
  FLASH_RETURN_IF_ERROR(move_budget(asked));
  if (live_) live_->ask(asked, automatic);
  refused_ram_ = 0;
  return Status();
}

void Core::watch_memory(const Hooks& hooks) {
  memory_clock_ = hooks.memory_clock ? hooks.memory_clock
                                     : [this] { return queue_->now(); };
  if (hooks.sample_memory) {
    sample_memory_ = hooks.sample_memory;
  } else if (!hooks.runtime_bytes) {
    sample_memory_ = sample_machine;
  }
  if (sample_memory_) live_.emplace(plan_.ram_bytes, config_.ram_bytes == 0);
}

// A few times a second, between forwards: tiles that must go are gone before
// the next pass.
void Core::follow_memory() {
  const uint64_t request = requested_ram_.exchange(kNoRequest);
  if (request != kNoRequest) {
    const Status status = set_ram(request);
    if (!status.ok()) log_warning(status.message());
  }
  if (!live_) return;
  const double now = memory_clock_();
  if (now < next_sample_) return;
  next_sample_ = now + kSampleEveryS;
  const uint64_t bytes = live_->update(now, sample_memory_());
  if (bytes == plan_.ram_bytes || bytes == refused_ram_) return;
  const uint64_t before = plan_.ram_bytes;
  const Status status = move_budget(bytes);
  if (status.ok()) {
    refused_ram_ = 0;
    log_debug(fmt::format("the budget follows the machine's memory: {} -> {}",
                          format_size(before),
                          format_size(bytes)));
    return;
  }
  if (refused_ram_ == 0) {
    log_warning(fmt::format("memory is short and the budget stays {}: {}",
                            format_size(before),
                            status.message()));
  }
  refused_ram_ = bytes;
}

}  // namespace mlx_flash
