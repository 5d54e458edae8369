// SPDX-License-Identifier: MIT
#include "residency/traced_tile_stream.h"

#include <utility>

namespace mlx_flash {
namespace {

class TracedTileStream final : public TileStream {
 public:
  TracedTileStream(std::unique_ptr<TileStream> stream,
                   const Schedule& schedule,
                   const ReadQueue& queue,
                   Trace& trace)
      : stream_(std::move(stream)),
        schedule_(schedule),
        queue_(queue),
        trace_(trace),
        acquired_(schedule.tiles().size()) {}

  Result<View> acquire(TileId tile) override {
    const double before = stream_->stats().wait_seconds;
    const double start = queue_.now();
    Result<View> view = stream_->acquire(tile);
    const double end = queue_.now();
    if (stream_->stats().wait_seconds > before) {
      trace_.add({.start = start,
                  .end = end,
                  .what = tile,
                  .kind = Trace::Kind::kWait});
    }
    acquired_[tile] = end;
    return view;
  }

  void release(TileId tile) override {
    trace_.add({.start = acquired_[tile],
                .end = queue_.now(),
                .what = tile,
                .bytes = schedule_.tiles()[tile].bytes,
                .kind = Trace::Kind::kTile});
    stream_->release(tile);
  }

  bool peek_pinned(TileId tile, View* view) const override {
    return stream_->peek_pinned(tile, view);
  }
  void end_pass() override { stream_->end_pass(); }
  Status set_pins(const std::vector<bool>& pinned) override {
    return stream_->set_pins(pinned);
  }
  Stats stats() const override { return stream_->stats(); }
  void check_invariants() const override { stream_->check_invariants(); }

 private:
  const std::unique_ptr<TileStream> stream_;
  const Schedule& schedule_;
  const ReadQueue& queue_;
  Trace& trace_;
  std::vector<double> acquired_;  // by TileId: when it was last handed out
};

}  // namespace

std::unique_ptr<TileStream> make_traced_tile_stream(
    std::unique_ptr<TileStream> stream,
    const Schedule& schedule,
    const ReadQueue& queue,
    Trace& trace) {
  return std::make_unique<TracedTileStream>(
      std::move(stream), schedule, queue, trace);
}

}  // namespace mlx_flash
