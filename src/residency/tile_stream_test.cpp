// SPDX-License-Identifier: MIT

// How the stream behaves: on a simulated device where time and order matter,
// on real files and threads where they do not.

#include "residency/tile_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <set>
#include <thread>

#include "io/read_queue_sim.h"
#include "io/testing/faulty_read_queue.h"
#include "io/testing/temp_file.h"

namespace mlx_flash {
namespace {

using testing::HasSubstr;

// `tiles` tiles of about `bytes` in one matrix at an odd offset.
ScheduledMatrix column(uint64_t tiles, uint64_t bytes, uint64_t offset = 777) {
  ScheduledMatrix m;
  m.name = "layers.0.up_proj";
  m.rows = tiles * 4;
  m.part_count = 1;
  m.parts[0] = {0, offset, bytes / 4};
  return m;
}

class SimStream : public testing::Test {
 protected:
  void open(uint64_t tiles,
            uint32_t slots,
            const std::function<bool(TileId)>& pinned) {
    std::vector<ScheduledMatrix> matrices = {column(tiles, 8192)};
    open_matrices(matrices, slots, pinned);
  }

  void open_matrices(const std::vector<ScheduledMatrix>& matrices,
                     uint32_t slots,
                     const std::function<bool(TileId)>& pinned) {
    stream.reset();
    schedule = std::make_unique<Schedule>(matrices, 8192, 512);
    if (files.empty()) {
      files.push_back(File::described("weights", 1 << 30, 512));
    }
    queue = std::make_unique<SimReadQueue>(options);
    arena = std::move(Arena::create(1 << 28, 1 << 28)).value();
    plan = Plan();
    plan.ring_slots = slots;
    plan.slot_bytes = (schedule->slot_bytes_max() + 4095) / 4096 * 4096;
    plan.pinned.resize(schedule->tiles().size());
    for (TileId t = 0; t < plan.pinned.size(); ++t) {
      plan.pinned[t] = pinned(t);
    }
    auto made = TileStream::create(*schedule, plan, *arena, *queue, files);
    ASSERT_TRUE(made.ok()) << made.status().message();
    stream = std::move(made).value();
  }

  Status use(TileId tile, double compute_s = 0) {
    auto got = stream->acquire(tile);
    stream->check_invariants();
    if (!got.ok()) return got.status();
    queue->advance(compute_s);
    const TilePart& part = schedule->tiles()[tile].parts[0];
    std::vector<std::byte> want(part.bytes);
    sim_fill("weights", part.offset, want);
    EXPECT_EQ(std::memcmp(want.data(), got->part[0], want.size()), 0);
    stream->release(tile);
    stream->check_invariants();
    return Status();
  }

  void pass(const std::vector<TileId>& order, double compute_s = 0) {
    for (const TileId tile : order) {
      const Status status = use(tile, compute_s);
      ASSERT_TRUE(status.ok()) << status.message();
    }
    stream->end_pass();
  }
  void pass() { pass(schedule->order()); }

  static bool none(TileId) { return false; }
  static bool every(TileId) { return true; }

  SimReadQueue::Options options;
  std::unique_ptr<Schedule> schedule;
  std::vector<File> files;
  std::unique_ptr<SimReadQueue> queue;
  std::unique_ptr<Arena> arena;
  Plan plan;
  std::unique_ptr<TileStream> stream;
};

TEST_F(SimStream, APredictedOrderHasNoMissesAndReadsEachTileOnce) {
  open(100, 4, none);
  for (int i = 0; i < 3; ++i) pass();
  const auto stats = stream->stats();
  EXPECT_EQ(stats.misses, 0u);
  EXPECT_EQ(stats.passes, 3u);
  EXPECT_EQ(stats.tiles_streamed, 300u);
  EXPECT_EQ(stats.tiles_pinned, 0u);
  EXPECT_EQ(stats.ring_wraps, 75u);
  // Three passes, and the ring is full again for the fourth.
  EXPECT_LE(queue->stats().reads, 304u);
}

TEST_F(SimStream, TheDiskIsBusyAcrossPasses) {
  options.latency_min_s = options.latency_max_s = 100e-6;
  options.bytes_per_s = 1e8;  // 90 us a tile
  open(50, 6, none);
  pass();
  const double idle = queue->now() - queue->stats().busy_seconds;
  const uint64_t reads = queue->stats().reads;
  queue->advance(500e-6);  // the sampler
  EXPECT_GE(queue->stats().reads, reads + 5);
  for (int i = 0; i < 10; ++i) pass();
  const double idle_now = queue->now() - queue->stats().busy_seconds;
  EXPECT_LT(idle_now - idle, 0.01 * queue->now());
}

TEST_F(SimStream, ReadingAndComputingOverlap) {
  options.latency_min_s = options.latency_max_s = 100e-6;
  options.bytes_per_s = 1e8;
  open(100, 8, none);
  pass();
  const double begin = queue->now();
  for (int i = 0; i < 5; ++i) pass(schedule->order(), 80e-6);
  const double slot = static_cast<double>(schedule->tiles()[1].slot_bytes);
  const double disk = 500 * slot / 1e8;
  EXPECT_LT(queue->now() - begin, 1.02 * disk + 1e-3);
}

TEST_F(SimStream, WithAllPinnedTheSecondPassReadsNothing) {
  open(64, 2, every);
  pass();
  const uint64_t reads = queue->stats().reads;
  EXPECT_EQ(reads, 64u);
  for (int i = 0; i < 4; ++i) pass();
  EXPECT_EQ(queue->stats().reads, reads);
  EXPECT_EQ(stream->stats().tiles_pinned, 5u * 64);
  EXPECT_EQ(stream->stats().tiles_streamed, 0u);
  EXPECT_EQ(stream->stats().misses, 0u);
}

TEST_F(SimStream, LaterPassesReadExactlyWhatIsNotPinned) {
  open(90, 4, [](TileId t) { return t % 3 == 0; });
  pass();
  const uint64_t first = queue->stats().reads;
  for (int i = 0; i < 5; ++i) pass();
  EXPECT_EQ(queue->stats().reads - first, 5u * 60);
  EXPECT_EQ(stream->stats().misses, 0u);
}

TEST_F(SimStream, FirstPassReadsOfPinnedTilesAreBounded) {
  options.latency_min_s = options.latency_max_s = 1;
  open(500, 2, every);
  EXPECT_LE(queue->running() + queue->pending(), 8u);
  EXPECT_GE(queue->running() + queue->pending(), 4u);
}

TEST_F(SimStream, TwoSlotsAreEnoughForAnyOrder) {
  open(40, 2, none);
  std::vector<TileId> order = schedule->order();
  std::mt19937 random(1);
  for (int i = 0; i < 20; ++i) {
    std::shuffle(order.begin(), order.end(), random);
    pass(order);
  }
}

TEST_F(SimStream, AllSlotsButOneCanBeHeld) {
  for (const uint32_t slots : {2u, 3u, 9u}) {
    open(40, slots, none);
    std::vector<TileStream::View> held;
    for (TileId t = 0; t + 1 < slots; ++t) {
      held.push_back(stream->acquire(t * 4).value());
    }
    for (TileId t = 39; t > 30; --t) ASSERT_TRUE(use(t).ok());
    for (const auto& view : held) stream->release(view.tile);
    stream->end_pass();
    pass();
  }
}

TEST_F(SimStream, HoldingTheWholeRingIsAnErrorNotAHang) {
  open(40, 3, none);
  for (const TileId t : {0, 1, 2}) ASSERT_TRUE(stream->acquire(t).ok());
  EXPECT_EQ(stream->acquire(7).status().code(), StatusCode::kInternal);
  stream->release(1);
  EXPECT_TRUE(use(7).ok());
  stream->release(0);
  stream->release(2);
  stream->end_pass();
  pass();
}

TEST_F(SimStream, AWrongPredictionIsLearntAfterOnePass) {
  open(60, 5, [](TileId t) { return t % 4 == 0; });
  pass();
  std::vector<TileId> order = schedule->order();
  std::reverse(order.begin(), order.end());
  pass(order);
  const auto learnt = stream->stats();
  EXPECT_GT(learnt.misses, 0u);
  const uint64_t reads = queue->stats().reads;
  for (int i = 0; i < 4; ++i) pass(order);
  // The tiles that the old prediction had fetched at the border may be missed.
  EXPECT_LE(stream->stats().misses - learnt.misses, 5u);
  EXPECT_LE(queue->stats().reads - reads, 4u * 45 + 10);
}

TEST_F(SimStream, NeighboursThatChangePlacesCostNothing) {
  open(60, 6, none);
  pass();
  std::vector<TileId> order = schedule->order();
  for (size_t i = 0; i + 3 < order.size(); i += 4) {
    std::rotate(order.begin() + static_cast<std::ptrdiff_t>(i),
                order.begin() + static_cast<std::ptrdiff_t>(i) + 2,
                order.begin() + static_cast<std::ptrdiff_t>(i) + 4);
  }
  const uint64_t reads = queue->stats().reads;
  pass(order);
  EXPECT_EQ(stream->stats().misses, 0u);
  EXPECT_LE(queue->stats().reads - reads, 60u + 6);
}

TEST_F(SimStream, LeavingOutTheTailKeepsThePredictionOfTheWhole) {
  open(60, 4, none);
  const std::vector<TileId> body(schedule->order().begin(),
                                 schedule->order().begin() + 40);
  for (int i = 0; i < 3; ++i) pass(body);  // a prompt's chunks want no logits
  pass();
  pass();
  EXPECT_EQ(stream->stats().misses, 0u);
}

TEST_F(SimStream, LeavingOutTheMiddleMissesAtMostARing) {
  open(100, 4, none);
  std::vector<TileId> order(schedule->order());
  order.erase(order.begin() + 30, order.begin() + 60);
  pass(order);
  EXPECT_LE(stream->stats().misses, 6u);
  const uint64_t misses = stream->stats().misses;
  pass(order);
  pass(order);
  EXPECT_LE(stream->stats().misses - misses, 4u);
}

TEST_F(SimStream, ATileThatComesTwiceInAPassIsPredictedTwice) {
  open(30, 3, none);
  std::vector<TileId> order(schedule->order());
  order.insert(order.begin() + 20, 3);
  order.insert(order.begin() + 10, 10);  // twice in a row
  pass(order);
  pass(order);
  const uint64_t misses = stream->stats().misses;
  for (int i = 0; i < 4; ++i) pass(order);
  EXPECT_EQ(stream->stats().misses, misses);
}

TEST_F(SimStream, ARingLargerThanTheModelReadsItOnce) {
  open(5, 9, none);
  for (int i = 0; i < 6; ++i) pass();
  EXPECT_EQ(queue->stats().reads, 5u);
}

TEST_F(SimStream, TilesThatAreNotOfEveryPassCanBeAcquired) {
  std::vector<ScheduledMatrix> matrices = {column(10, 8192),
                                           column(20, 8192, 1 << 20)};
  matrices[0].every_pass = false;
  open_matrices(matrices, 3, [](TileId t) { return t == 3; });
  EXPECT_EQ(schedule->order().size(), 20u);
  pass();
  for (TileId t = 0; t < 10; ++t) EXPECT_TRUE(use(t).ok());
  EXPECT_EQ(stream->stats().tiles_pinned, 1u);
  TileStream::View view;
  EXPECT_TRUE(stream->peek_pinned(3, &view));
  EXPECT_FALSE(stream->peek_pinned(4, &view));
}

TEST_F(SimStream, AnErrorReachesOnlyTheTileThatNeedsIt) {
  bool broken = true;
  options.fault = [&](const ReadRequest& r) {
    const TilePart& bad = schedule->tiles()[20].parts[0];
    return broken && r.offset == bad.aligned_offset ? EIO : 0;
  };
  for (const bool pinned : {false, true}) {
    broken = true;
    open(40, 6, [&](TileId t) { return pinned && t == 20; });
    for (TileId t = 0; t < 20; ++t) ASSERT_TRUE(use(t).ok());
    const Status status = use(20);
    EXPECT_EQ(status.code(), StatusCode::kIoError);
    EXPECT_THAT(status.message(), HasSubstr("weights"));
    EXPECT_THAT(status.message(), HasSubstr("layers.0.up_proj"));
    EXPECT_THAT(status.message(), HasSubstr("offset"));
    EXPECT_FALSE(use(20).ok());  // tried again, and failed again
    for (TileId t = 21; t < 40; ++t) ASSERT_TRUE(use(t).ok());
    broken = false;
    EXPECT_TRUE(use(20).ok());
    stream->end_pass();
    pass();
  }
  stream.reset();  // before what its reads refer to
}

TEST_F(SimStream, AnErrorInATileNobodyNeedsIsNotReported) {
  options.fault = [&](const ReadRequest& r) {
    const TilePart& bad = schedule->tiles()[20].parts[0];
    return r.offset == bad.aligned_offset ? EIO : 0;
  };
  open(40, 6, none);
  std::vector<TileId> order = schedule->order();
  std::erase(order, 20u);
  for (int i = 0; i < 3; ++i) pass(order);
}

TEST_F(SimStream, AnErrorThatPassesIsNotSeen) {
  int failures = 0;
  options.fault = [&](const ReadRequest&) {
    return ++failures % 3 == 0 ? EIO : 0;
  };
  open(40, 6, none);
  pass();
  EXPECT_GT(queue->stats().retries, 0u);
  stream.reset();  // before what its reads refer to
}

TEST_F(SimStream, AFileThatEndsEarlyIsAnErrorWithPlace) {
  files.push_back(File::described("weights", 100'000, 512));
  open(10, 3, none);
  pass();
  // Cut behind our back: the schedule still counts on the old size.
  options.fault = {};
  stream.reset();
  files[0] = File::described("weights", 60'000, 512);
  const auto made = TileStream::create(*schedule, plan, *arena, *queue, files);
  EXPECT_EQ(made.status().code(), StatusCode::kInvalidInput);
  EXPECT_THAT(made.status().message(), HasSubstr("past the end"));
}

TEST_F(SimStream, PinsCanYieldAndComeBackWithinTheBudget) {
  open(60, 4, every);
  pass();
  const uint64_t full = arena->committed_bytes();
  std::vector<bool> pins(60, true);
  for (TileId t = 0; t < 60; t += 2) pins[t] = false;
  ASSERT_TRUE(stream->set_pins(pins).ok());
  const uint64_t half = arena->committed_bytes();
  EXPECT_LT(half, full);
  const uint64_t reads = queue->stats().reads;
  pass();
  pass();
  EXPECT_GE(queue->stats().reads - reads, 60u);
  EXPECT_LE(queue->stats().reads - reads, 64u);
  ASSERT_TRUE(stream->set_pins(std::vector<bool>(60, true)).ok());
  EXPECT_EQ(arena->committed_bytes(), full);
  pass();
  pass();  // the last ring copies are gone, all have homes
  const uint64_t settled = queue->stats().reads;
  pass();
  EXPECT_EQ(queue->stats().reads, settled);
  EXPECT_EQ(stream->stats().misses, 0u);
}

TEST_F(SimStream, PinsThatDoNotFitAreRefusedAndTheRestWorks) {
  open(60, 4, none);
  arena->set_budget(arena->committed_bytes() + 20 * 12288);
  const Status status = stream->set_pins(std::vector<bool>(60, true));
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_LE(arena->committed_bytes(), arena->budget_bytes());
  pass();  // what was in the ring goes on from there
  const uint64_t pinned = stream->stats().tiles_pinned;
  pass();
  EXPECT_EQ(stream->stats().tiles_pinned - pinned, 20u);
}

TEST_F(SimStream, UnpinningWhileItsReadIsUnderWayIsSafe) {
  options.latency_min_s = options.latency_max_s = 10e-3;
  open(60, 4, every);
  ASSERT_TRUE(stream->set_pins(std::vector<bool>(60, false)).ok());
  EXPECT_EQ(arena->committed_bytes(), plan.ring_slots * plan.slot_bytes);
  pass();
}

TEST_F(SimStream, DestructionWaitsForReadsAndGivesAllMemoryBack) {
  options.latency_min_s = options.latency_max_s = 10e-3;
  open(60, 8, [](TileId t) { return t % 2 == 0; });
  EXPECT_GT(queue->running(), 0u);
  ASSERT_TRUE(use(0).ok());
  stream.reset();
  EXPECT_EQ(queue->running() + queue->pending(), 0u);
  EXPECT_EQ(arena->committed_bytes(), 0u);
}

// --- Real files -----------------------------------------------------------

class RealStream : public testing::TestWithParam<IoKind> {
 protected:
  static constexpr uint64_t kTile = 100'000;

  RealStream()
      : temp(60 * kTile + 1000), inner(make_read_queue(GetParam(), {})) {
    files.push_back(
        std::move(File::open(temp.path(), File::Mode::kDirect)).value());
    schedule = std::make_unique<Schedule>(
        std::vector<ScheduledMatrix>{column(60, kTile)}, kTile, 4096);
    arena = std::move(Arena::create(1 << 28, 1 << 28)).value();
    plan.ring_slots = 5;
    plan.slot_bytes = (schedule->slot_bytes_max() + 4095) / 4096 * 4096;
    plan.pinned.resize(60);
    for (TileId t = 0; t < 60; t += 3) plan.pinned[t] = true;
    queue = std::make_unique<FaultyReadQueue>(*inner);
  }

  void open() {
    auto made = TileStream::create(*schedule, plan, *arena, *queue, files);
    ASSERT_TRUE(made.ok()) << made.status().message();
    stream = std::move(made).value();
  }

  bool right(const TileStream::View& view) const {
    const TilePart& part = schedule->tiles()[view.tile].parts[0];
    const auto want = TempFile::content(part.offset, part.bytes);
    return std::memcmp(want.data(), view.part[0], want.size()) == 0;
  }

  // Wrong or failed tiles of one pass.
  std::set<TileId> bad_tiles(Status* error = nullptr) {
    std::set<TileId> bad;
    for (const TileId tile : schedule->order()) {
      auto view = stream->acquire(tile);
      if (!view.ok()) {
        if (error != nullptr) *error = view.status();
        bad.insert(tile);
        continue;
      }
      if (!right(*view)) bad.insert(tile);
      stream->release(tile);
    }
    stream->end_pass();
    return bad;
  }

  TempFile temp;
  std::unique_ptr<ReadQueue> inner;
  std::unique_ptr<FaultyReadQueue> queue;
  std::vector<File> files;
  std::unique_ptr<Schedule> schedule;
  std::unique_ptr<Arena> arena;
  Plan plan;
  std::unique_ptr<TileStream> stream;
};

TEST_P(RealStream, GivesTheBytesOfTheFilePassAfterPass) {
  open();
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(bad_tiles().empty());
  EXPECT_EQ(stream->stats().misses, 0u);
  EXPECT_GE(stream->stats().ring_wraps, 39u);
  EXPECT_GE(stream->stats().bytes_read, (20 + 5 * 40) * kTile);
}

TEST_P(RealStream, OneFlippedByteIsSeenInItsTileAlone) {
  queue->flip_byte(
      temp.path(), schedule->tiles()[17].parts[0].offset + 500, std::byte{1});
  open();
  EXPECT_EQ(bad_tiles(), std::set<TileId>{17});
  EXPECT_EQ(bad_tiles(), std::set<TileId>{17});
}

TEST_P(RealStream, TwoSwappedTilesAreSeen) {
  queue->swap_bytes(temp.path(),
                    schedule->tiles()[4].parts[0].offset,
                    schedule->tiles()[31].parts[0].offset,
                    kTile);
  open();
  EXPECT_EQ(bad_tiles(), (std::set<TileId>{4, 31}));
}

TEST_P(RealStream, AFailedReadIsAnErrorAndThenTriedAgain) {
  open();
  EXPECT_TRUE(bad_tiles().empty());
  const TilePart& part = schedule->tiles()[40].parts[0];
  queue->fail_bytes(temp.path(), part.offset + 5000, 1);
  Status error;
  // The next pass's first tiles are read already; tile 40 is not.
  EXPECT_EQ(bad_tiles(&error), std::set<TileId>{40});
  EXPECT_THAT(error.message(), HasSubstr(temp.path()));
  queue->clear();
  EXPECT_TRUE(bad_tiles().empty());
}

TEST_P(RealStream, AFileCutOrWrittenInMidRunIsAnErrorNeverOtherBytes) {
  open();
  EXPECT_TRUE(bad_tiles().empty());
  temp.scribble(30 * kTile);
  Status error;
  EXPECT_GT(bad_tiles(&error).size(), 20u);
  EXPECT_THAT(error.message(), HasSubstr("changed while in use"));
  temp.truncate(20 * kTile);
  bad_tiles(&error);
  EXPECT_THAT(error.message(), HasSubstr("end of file"));
}

TEST_P(RealStream, AnotherThreadMayReleaseAndPeek) {
  open();
  std::atomic<int> wrong{0};
  for (int round = 0; round < 5; ++round) {
    Mutex mutex;
    std::vector<TileStream::View> held;
    std::atomic<bool> over{false};
    std::thread other([&] {
      while (true) {
        const bool last = over.load();
        std::vector<TileStream::View> mine;
        {
          MutexLock lock(mutex);
          mine.swap(held);
        }
        for (const auto& view : mine) {
          wrong += right(view) ? 0 : 1;
          stream->release(view.tile);
        }
        TileStream::View view;
        if (stream->peek_pinned(3, &view)) wrong += right(view) ? 0 : 1;
        if (last && mine.empty()) break;
      }
    });
    for (const TileId tile : schedule->order()) {
      for (;;) {  // at most ring_slots - 1 at a time
        MutexLock lock(mutex);
        if (held.size() < 2) break;
      }
      auto view = stream->acquire(tile);
      EXPECT_TRUE(view.ok());
      MutexLock lock(mutex);
      held.push_back(*view);
    }
    over = true;
    other.join();
    stream->end_pass();
  }
  EXPECT_EQ(wrong.load(), 0);
}

TEST_P(RealStream, DestructionInTheMiddleIsSafe) {
  for (int i = 0; i < 20; ++i) {
    open();
    for (TileId t = 0; t < static_cast<TileId>(i); ++t) {
      ASSERT_TRUE(stream->acquire(t).ok());
      stream->release(t);
    }
    stream.reset();
    EXPECT_EQ(arena->committed_bytes(), 0u);
    arena = std::move(Arena::create(1 << 28, 1 << 28)).value();
  }
}

INSTANTIATE_TEST_SUITE_P(Backends,
                         RealStream,
                         testing::Values(IoKind::kThreads, IoKind::kUring),
                         [](const auto& test) {
                           return test.param == IoKind::kThreads ? "Threads"
                                                                 : "Uring";
                         });

}  // namespace
}  // namespace mlx_flash
