// SPDX-License-Identifier: MIT
#include "residency/cached_experts.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "residency/expert_cache.h"

namespace mlx_flash {
namespace {

class CachedExpertsImpl final : public CachedExperts {
 public:
  CachedExpertsImpl(const ExpertSchedule& schedule,
                    ReadQueue& queue,
                    std::span<const File> files,
                    ExpertSlots slots,
                    LookAhead look_ahead,
                    ExpertPolicy policy)
      : schedule_(schedule),
        queue_(queue),
        look_ahead_(look_ahead),
        cache_(schedule, files, std::move(slots), policy) {}

  ~CachedExpertsImpl() override {
    cache_.end();
    cache_.cancel_all();
    settle();
    cache_.clear();
  }

  Status begin(uint32_t layer,
               std::span<const uint32_t> experts,
               std::span<const uint32_t> rows) override {
    reap(false);
    step_pass(layer, rows);
    cache_.begin(layer, experts, rows);
    pump();
    return Status();
  }

  Result<const Piece*> next() override {
    reap(false);
    Status status;
    bool forced = false;
    for (;;) {
      const ExpertCache::Answer answer = cache_.next(&piece_, &status);
      if (answer != ExpertCache::Answer::kFailed) pump();
      switch (answer) {
        case ExpertCache::Answer::kPiece:
          return &piece_;
        case ExpertCache::Answer::kDone:
          return static_cast<const Piece*>(nullptr);
        case ExpertCache::Answer::kFailed:
          return status;
        case ExpertCache::Answer::kWait:
          break;
      }
      const double since = queue_.now();
      const bool came = reap(true);
      wait_seconds_ += queue_.now() - since;
      if (came) {
        forced = false;
      } else if (cache_.reads_under_way() == 0) {
        if (forced) return no_room();
        forced = true;
        cache_.force();
      }
    }
  }

  void release() override {
    cache_.release();
    reap(false);
    pump();
  }

  void end() override {
    cache_.end();
    reap(false);
    pump();
    pass_end_ = queue_.now();
  }

  void look_ahead(uint32_t layer, std::span<const uint32_t> experts) override {
    if (!wants_look_ahead()) return;
    cache_.look_ahead(layer, experts);
    pump();
  }
  bool wants_look_ahead() const override {
    return one_token_ && (look_ahead_ == LookAhead::kAlways ||
                          (look_ahead_ == LookAhead::kGate && gate_.open()));
  }

  void set_budget(uint64_t bytes) override {
    reap(false);
    cache_.set_budget(bytes);
    if (cache_.settled()) return;
    cache_.cancel_all();
    settle();
  }

  ExpertFrequency::State learnt() const override {
    return cache_.frequency().state();
  }
  bool restore(const ExpertFrequency::State& state) override {
    return cache_.frequency().restore(state);
  }

  Stats stats() const override {
    Stats stats = cache_.stats();
    stats.wait_seconds = wait_seconds_;
    stats.gate = gate_.stats();
    return stats;
  }

  uint64_t resident_bytes() const override { return cache_.committed_bytes(); }

  void check_invariants() const override { cache_.check_invariants(); }

 private:
  Status no_room() const {
    return exhausted(
        fmt::format("{} bytes for experts do not hold a piece of {}",
                    cache_.budget_bytes(),
                    schedule_.home_bytes_max()));
  }

  // A layer that is not behind the last one begins another pass. The gate hears
  // of those of one token in which every layer had its turn.
  void step_pass(uint32_t layer, std::span<const uint32_t> rows) {
    uint64_t uses = 0;
    for (const uint32_t n : rows) uses += n;
    const bool one = uses <= schedule_.layers()[layer].active;
    if (layer > layer_ && rounds_ > 0) {
      one_token_ = one_token_ && one;
    } else {
      if (one_token_ && rounds_ == schedule_.layers().size()) {
        const Stats now = cache_.stats();
        const uint64_t bytes = needed_bytes(now) - needed_bytes(pass_stats_);
        gate_.end_pass(pass_end_ - pass_begin_, bytes);
      }
      pass_begin_ = queue_.now();
      pass_stats_ = cache_.stats();
      rounds_ = 0;
      one_token_ = one;
    }
    ++rounds_;
    layer_ = layer;
  }

  static uint64_t needed_bytes(const Stats& stats) {
    return stats.bytes - stats.hit_bytes + stats.ahead_used_bytes;
  }

  // Carries out what the cache has decided.
  void pump() {
    while (ExpertCache::Read* read = cache_.next_cancel()) {
      for (uint32_t i = 0; i < read->count; ++i) {
        queue_.cancel(read->requests[i]);
      }
    }
    while (ExpertCache::Read* read = cache_.next_promotion()) {
      for (uint32_t i = 0; i < read->count; ++i) {
        queue_.promote(read->requests[i], ReadClass::kNeededNow);
      }
    }
    while (ExpertCache::Read* read = cache_.next_read()) {
      for (uint32_t i = 0; i < read->count; ++i) {
        queue_.submit(channel_, read->requests[i]);
      }
    }
  }

  // Takes in finished reads; false if none came and none is under way.
  bool reap(bool block) {
    std::array<ReadRequest*, 32> done;
    for (;;) {
      const size_t n = queue_.wait(channel_, done, block);
      for (size_t i = 0; i < n; ++i) cache_.on_completion(*done[i]);
      if (block || n < done.size()) return n > 0;
    }
  }

  // Until nothing is under way.
  void settle() {
    pump();
    while (cache_.reads_under_way() > 0) reap(true);
  }

  const ExpertSchedule& schedule_;
  ReadQueue& queue_;
  const LookAhead look_ahead_;
  ReadChannel channel_;
  ExpertCache cache_;
  LookAheadGate gate_;
  // The pass under way.
  Stats pass_stats_;  // when it began
  double pass_begin_ = 0;
  double pass_end_ = 0;  // of its last round so far
  uint32_t layer_ = 0;
  size_t rounds_ = 0;
  bool one_token_ = false;
  Piece piece_;
  double wait_seconds_ = 0;
};

}  // namespace

uint64_t CachedExperts::address_bytes(const ExpertSchedule& schedule,
                                      uint64_t page_bytes) {
  return ExpertSlots::address_bytes(schedule, page_bytes);
}

Result<std::unique_ptr<CachedExperts>> CachedExperts::create(
    const ExpertSchedule& schedule,
    uint64_t budget_bytes,
    Arena& arena,
    ReadQueue& queue,
    std::span<const File> files,
    LookAhead look_ahead,
    ExpertPolicy policy) {
  FLASH_RETURN_IF_ERROR(schedule.check_files(files));
  FLASH_ASSIGN_OR_RETURN(ExpertSlots slots,
                         ExpertSlots::create(schedule, arena, budget_bytes));
  return std::unique_ptr<CachedExperts>(std::make_unique<CachedExpertsImpl>(
      schedule, queue, files, std::move(slots), look_ahead, policy));
}

}  // namespace mlx_flash
