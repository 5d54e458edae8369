// SPDX-License-Identifier: MIT
#include "residency/traced_expert_stream.h"

#include <algorithm>

namespace mlx_flash {
namespace {

// Shorter ones are the time it takes to look.
constexpr double kWaitMinS = 20e-6;

class TracedExpertStream final : public ExpertStream {
 public:
  TracedExpertStream(CachedExperts& stream,
                     const ReadQueue& queue,
                     Trace& trace)
      : stream_(stream), queue_(queue), trace_(trace) {}

  Status begin(uint32_t layer,
               std::span<const uint32_t> experts,
               std::span<const uint32_t> rows) override {
    layer_ = layer;
    const CachedExperts::Stats before = stream_.stats();
    round_.start = queue_.now();
    Status begun = stream_.begin(layer, experts, rows);
    const CachedExperts::Stats after = stream_.stats();
    const uint64_t pieces = after.pieces - before.pieces;
    const uint64_t hits = after.hits - before.hits;
    round_.what = uint64_t{layer} << 32 |
                  std::min<uint64_t>(hits, UINT16_MAX) << 16 |
                  std::min<uint64_t>(pieces - hits, UINT16_MAX);
    round_.bytes =
        (after.bytes - before.bytes) - (after.hit_bytes - before.hit_bytes);
    return begun;
  }

  Result<const Piece*> next() override {
    const double start = queue_.now();
    Result<const Piece*> piece = stream_.next();
    taken_ = queue_.now();
    if (!piece.ok() || *piece == nullptr) return piece;
    expert_ = (*piece)->expert;
    if (taken_ - start > kWaitMinS) {
      trace_.add({.start = start,
                  .end = taken_,
                  .what = what(),
                  .kind = Trace::Kind::kExpertWait});
    }
    return piece;
  }

  void release() override {
    trace_.add({.start = taken_,
                .end = queue_.now(),
                .what = what(),
                .kind = Trace::Kind::kExpert});
    stream_.release();
  }

  void end() override {
    stream_.end();
    round_.end = queue_.now();
    trace_.add(round_);
  }
  void look_ahead(uint32_t layer, std::span<const uint32_t> experts) override {
    stream_.look_ahead(layer, experts);
  }
  bool wants_look_ahead() const override { return stream_.wants_look_ahead(); }

 private:
  uint64_t what() const { return uint64_t{layer_} << 32 | expert_; }

  CachedExperts& stream_;
  const ReadQueue& queue_;
  Trace& trace_;
  uint32_t layer_ = 0;
  uint32_t expert_ = 0;
  double taken_ = 0;
  Trace::Event round_{.kind = Trace::Kind::kExpertRound};
};

}  // namespace

std::unique_ptr<ExpertStream> make_traced_expert_stream(CachedExperts& stream,
                                                        const ReadQueue& queue,
                                                        Trace& trace) {
  return std::make_unique<TracedExpertStream>(stream, queue, trace);
}

}  // namespace mlx_flash
