// SPDX-License-Identifier: MIT
#include "residency/tile_stream.h"

#include <fmt/core.h>

#include <array>

#include "base/check.h"
#include "base/thread_annotations.h"
#include "residency/tile_stream_core.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kPartBytesMax = uint64_t{1} << 30;

class TileStreamImpl final : public TileStream {
 public:
  TileStreamImpl(const Schedule& schedule,
                 std::span<const File> files,
                 Arena& arena,
                 ReadQueue& queue,
                 TileStreamCore::Memory memory,
                 std::vector<TileId> home_order,
                 const Options& options)
      : schedule_(schedule),
        arena_(arena),
        queue_(queue),
        files_(files),
        options_(options),
        ring_(memory.ring),
        ring_bytes_(memory.ring_slots * memory.slot_bytes),
        homes_(memory.homes),
        home_order_(std::move(home_order)),
        core_(schedule, files, std::move(memory)) {}

  ~TileStreamImpl() override {
    MutexLock lock(mutex_);
    core_.discard_all();
    pump();
    while (core_.discards_under_way() > 0) reap(true);
    for (TileId tile = 0; tile < homes_.size(); ++tile) {
      if (!core_.pinned(tile)) continue;
      arena_.decommit(homes_[tile], home_bytes(tile));
    }
    if (!ring_committed_) return;
    queue_.expect_reads({}, {});
    arena_.decommit(ring_, ring_bytes_);
  }

  // Takes the memory and starts reading.
  Status start(const std::vector<bool>& pinned) {
    MutexLock lock(mutex_);
    FLASH_RETURN_IF_ERROR(arena_.commit(ring_, ring_bytes_));
    ring_committed_ = true;
    queue_.expect_reads(files_, {ring_, ring_bytes_});
    FLASH_RETURN_IF_ERROR(join(pinned));
    tell_demand();
    pump();
    return Status();
  }

  Result<View> acquire(TileId tile) override {
    MutexLock lock(mutex_);
    reap(false);
    View view;
    Status status;
    double waited = 0;
    for (;;) {
      switch (core_.want(tile, &view, &status)) {
        case TileStreamCore::Answer::kReady:
          if (options_.controller) {
            const uint64_t ahead =
                controller_.paced() ? core_.bytes_ahead() : 0;
            controller_.on_acquire(
                core_.consumer(), ahead, queue_.now(), waited);
          }
          pump();
          return view;
        case TileStreamCore::Answer::kFailed:
          pump();
          return status.at(
              schedule_.matrices()[schedule_.tiles()[tile].matrix].name);
        case TileStreamCore::Answer::kWait:
          break;
      }
      pump();
      const double since = queue_.now();
      if (!reap(true)) {
        core_.give_up();
        return internal_error(
            fmt::format("tile {} wanted while {} tiles are held: the ring has "
                        "no slot left",
                        tile,
                        core_.held()));
      }
      const double wait = queue_.now() - since;
      waited += wait;
      wait_seconds_ += wait;
    }
  }

  void release(TileId tile) override {
    MutexLock lock(mutex_);
    core_.release(tile);
    // A consumer that waits takes completions in itself.
    if (!waiting_) reap(false);
    pump();
  }

  bool peek_pinned(TileId tile, View* view) const override {
    MutexLock lock(mutex_);
    return core_.peek_home(tile, view);
  }

  void end_pass() override {
    MutexLock lock(mutex_);
    const bool learnt = core_.end_pass();
    if (options_.controller) controller_.end_pass(queue_.now());
    if (learnt) tell_demand();
    if (!waiting_) reap(false);
    pump();
  }

  Status set_pins(const std::vector<bool>& pinned) override {
    MutexLock lock(mutex_);
    FLASH_CHECK(core_.held() == 0 && pinned.size() == homes_.size());
    leaving_.clear();
    for (TileId tile = 0; tile < homes_.size(); ++tile) {
      if (!core_.pinned(tile) || pinned[tile]) continue;
      leaving_.push_back(tile);
      core_.unpin(tile);
    }
    cancel_reads();
    while (core_.discards_under_way() > 0) reap(true);
    for (const TileId tile : leaving_) {
      arena_.decommit(homes_[tile], home_bytes(tile));
    }
    Status status = join(pinned);
    core_.restart_prediction();
    tell_demand();
    pump();
    return status;
  }

  Stats stats() const override {
    MutexLock lock(mutex_);
    Stats stats = core_.stats();
    stats.wait_seconds = wait_seconds_;
    stats.controller = controller_.stats();
    return stats;
  }

  void check_invariants() const override {
    MutexLock lock(mutex_);
    core_.check_invariants();
  }

 private:
  uint64_t home_bytes(TileId tile) const {
    return tile_memory_bytes(schedule_.tiles()[tile], arena_.page_bytes());
  }

  // Pins what is in `pinned` and was not; stops where the budget ends.
  Status join(const std::vector<bool>& pinned) REQUIRES(mutex_) {
    for (TileId tile = 0; tile < homes_.size(); ++tile) {
      if (!pinned[tile] || core_.pinned(tile)) continue;
      FLASH_RETURN_IF_ERROR(arena_.commit(homes_[tile], home_bytes(tile)));
      core_.pin(tile);
    }
    prefer_huge_pages();
    return Status();
  }

  // Homes that lie side by side share pages: ask for whole stretches of them.
  void prefer_huge_pages() REQUIRES(mutex_) {
    std::byte* begin = nullptr;
    uint64_t bytes = 0;
    for (const TileId tile : home_order_) {
      if (!core_.pinned(tile)) continue;
      if (bytes > 0 && begin + bytes != homes_[tile]) {
        arena_.prefer_huge_pages(begin, bytes);
        bytes = 0;
      }
      if (bytes == 0) begin = homes_[tile];
      bytes += home_bytes(tile);
    }
    if (bytes > 0) arena_.prefer_huge_pages(begin, bytes);
  }

  void cancel_reads() REQUIRES(mutex_) {
    while (TileStreamCore::Read* read = core_.next_cancel()) {
      for (uint32_t i = 0; i < read->part_count; ++i) {
        queue_.cancel(read->parts[i]);
      }
    }
  }

  // Carries out what the core and the controller have decided.
  void pump() REQUIRES(mutex_) {
    set_pace();
    cancel_reads();
    if (TileStreamCore::Read* read = core_.next_promotion()) {
      for (uint32_t i = 0; i < read->part_count; ++i) {
        queue_.promote(read->parts[i], ReadClass::kNeededNow);
      }
    }
    while (may_read()) {
      TileStreamCore::Read* read = core_.next_read();
      if (read == nullptr) break;
      for (uint32_t i = 0; i < read->part_count; ++i) {
        queue_.submit(channel_, read->parts[i]);
      }
    }
    cancel_reads();
  }

  bool may_read() const REQUIRES(mutex_) {
    return options_.read_ahead || core_.demand_unread();
  }

  void set_pace() REQUIRES(mutex_) {
    const double rate = controller_.ahead_rate();
    if (rate == pace_) return;
    pace_ = rate;
    queue_.set_ahead_rate(rate);
  }

  void tell_demand() REQUIRES(mutex_) {
    if (!options_.controller) return;
    disk_bytes_.clear();
    for (const TileId tile : core_.predicted()) {
      disk_bytes_.push_back(
          core_.pinned(tile) ? 0 : schedule_.tiles()[tile].slot_bytes);
    }
    controller_.set_demand(disk_bytes_);
  }

  // Takes in finished reads; false if none came and none is under way. Gives
  // the lock away while it blocks, so that tiles can be released meanwhile.
  bool reap(bool block) REQUIRES(mutex_) {
    std::array<ReadRequest*, 32> done;
    for (;;) {
      size_t n = 0;
      if (block) {
        waiting_ = true;
        mutex_.unlock();
        n = queue_.wait(channel_, done, true);
        mutex_.lock();
        waiting_ = false;
      } else {
        n = queue_.wait(channel_, done, false);
      }
      for (size_t i = 0; i < n; ++i) core_.on_completion(*done[i]);
      if (block || n < done.size()) return n > 0;
    }
  }

  const Schedule& schedule_;
  Arena& arena_;
  ReadQueue& queue_;
  const std::span<const File> files_;
  const Options options_;
  std::byte* const ring_;
  const uint64_t ring_bytes_;
  const std::vector<std::byte*> homes_;   // by TileId
  const std::vector<TileId> home_order_;  // by address
  ReadChannel channel_;                   // guarded by the queue

  mutable Mutex mutex_;
  TileStreamCore core_ GUARDED_BY(mutex_);
  BandwidthController controller_ GUARDED_BY(mutex_);
  double pace_ GUARDED_BY(mutex_) = 0;  // what the queue was told
  std::vector<TileId> leaving_ GUARDED_BY(mutex_);
  std::vector<uint64_t> disk_bytes_ GUARDED_BY(mutex_);  // tell_demand()'s
  bool ring_committed_ GUARDED_BY(mutex_) = false;
  bool waiting_ GUARDED_BY(mutex_) = false;
  double wait_seconds_ GUARDED_BY(mutex_) = 0;
};

Status check_tiles(const Schedule& schedule, std::span<const File> files) {
  for (const Tile& tile : schedule.tiles()) {
    const std::string& name = schedule.matrices()[tile.matrix].name;
    for (uint32_t i = 0; i < tile.part_count; ++i) {
      const TilePart& part = tile.parts[i];
      if (part.file >= files.size()) {
        return internal_error(
            fmt::format("{}: file {} of {}", name, part.file, files.size()));
      }
      const File& file = files[part.file];
      if (schedule.alignment() % file.alignment() != 0) {
        return internal_error(
            fmt::format("{}: tiles are cut at multiples of {}, direct reads "
                        "need {}",
                        file.path(),
                        schedule.alignment(),
                        file.alignment()));
      }
      if (part.offset > file.size() || part.bytes > file.size() - part.offset) {
        return invalid_input(
            fmt::format("{}: {} bytes of {} at offset {} reach past the end "
                        "({} bytes)",
                        file.path(),
                        part.bytes,
                        name,
                        part.offset,
                        file.size()));
      }
      if (part.aligned_bytes > kPartBytesMax) {
        return unsupported(
            fmt::format("{}: a row of {} bytes", name, part.bytes));
      }
    }
  }
  return Status();
}

}  // namespace

uint64_t TileStream::address_bytes(const Schedule& schedule,
                                   const Plan& plan,
                                   uint64_t page_bytes) {
  uint64_t bytes = plan.ring_slots * plan.slot_bytes + page_bytes;
  for (const Tile& tile : schedule.tiles()) {
    bytes += tile_memory_bytes(tile, page_bytes);
  }
  return bytes;
}

Result<std::unique_ptr<TileStream>> TileStream::create(
    const Schedule& schedule,
    const Plan& plan,
    Arena& arena,
    ReadQueue& queue,
    std::span<const File> files,
    const Options& options) {
  FLASH_CHECK(plan.pinned.size() == schedule.tiles().size());
  FLASH_CHECK(plan.slot_bytes >= schedule.slot_bytes_max());
  FLASH_RETURN_IF_ERROR(check_tiles(schedule, files));
  const uint64_t page = arena.page_bytes();
  TileStreamCore::Memory memory;
  memory.slot_bytes = (plan.slot_bytes + page - 1) / page * page;
  memory.ring_slots = plan.ring_slots;
  FLASH_ASSIGN_OR_RETURN(memory.ring,
                         arena.reserve(memory.slot_bytes * memory.ring_slots));
  // Homes lie in the order in which tiles deserve to be pinned, so that those
  // in use lie together and need few page tables.
  uint64_t bytes = 0;
  for (const Tile& tile : schedule.tiles()) {
    bytes += tile_memory_bytes(tile, page);
  }
  FLASH_ASSIGN_OR_RETURN(std::byte * home, arena.reserve(bytes));
  memory.homes.resize(schedule.tiles().size());
  std::vector<TileId> home_order = pin_order(schedule);
  for (const TileId tile : home_order) {
    memory.homes[tile] = home;
    home += tile_memory_bytes(schedule.tiles()[tile], page);
  }
  auto stream = std::make_unique<TileStreamImpl>(schedule,
                                                 files,
                                                 arena,
                                                 queue,
                                                 std::move(memory),
                                                 std::move(home_order),
                                                 options);
  FLASH_RETURN_IF_ERROR(stream->start(plan.pinned));
  return std::unique_ptr<TileStream>(std::move(stream));
}

}  // namespace mlx_flash
