// SPDX-License-Identifier: MIT

// Random schedules, tile sizes, budgets, orders, latencies, faults and
// cancellations on a simulated device, in one thread and virtual time.

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <set>
#include <vector>

#include "io/read_queue_sim.h"
#include "residency/testing/simulation.h"
#include "residency/tile_stream.h"

namespace mlx_flash {
namespace {

using testing::Dice;
using testing::for_seeds;
using testing::random_device;

constexpr uint64_t kAlignment = 512;

// Matrices of one to three parts that follow each other in two files, with
// odd offsets.
std::vector<ScheduledMatrix> random_matrices(Dice& dice,
                                             std::array<uint64_t, 2>& sizes) {
  std::vector<ScheduledMatrix> matrices(dice.between(1, 8));
  for (size_t i = 0; i < matrices.size(); ++i) {
    ScheduledMatrix& m = matrices[i];
    m.name = "matrix " + std::to_string(i);
    m.rows = dice.between(1, 40);
    m.part_count = static_cast<uint32_t>(dice.between(1, 3));
    m.every_pass = i == 0 || !dice.chance(0.1);
    for (uint32_t p = 0; p < m.part_count; ++p) {
      const auto file = static_cast<uint32_t>(dice.below(2));
      sizes[file] += dice.below(700);
      m.parts[p] = {file, sizes[file], dice.between(1, p == 0 ? 900 : 90)};
      sizes[file] += m.rows * m.parts[p].row_bytes;
    }
  }
  return matrices;
}

std::vector<bool> random_pins(Dice& dice, const Schedule& schedule) {
  const double share = dice.chance(0.2) ? 1.0
                       : dice.chance(0.3)
                           ? 0.0
                           : static_cast<double>(dice.below(100)) / 100;
  std::vector<bool> pins(schedule.tiles().size());
  for (size_t i = 0; i < pins.size(); ++i) pins[i] = dice.chance(share);
  return pins;
}

uint64_t pin_memory(const Schedule& schedule,
                    const std::vector<bool>& pins,
                    uint64_t page) {
  uint64_t bytes = 0;
  for (TileId t = 0; t < pins.size(); ++t) {
    if (pins[t]) bytes += tile_memory_bytes(schedule.tiles()[t], page);
  }
  return bytes;
}

// A place of a file that cannot be read for a while.
struct BadPlace {
  bool active = false;
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;

  bool hits(uint32_t f, uint64_t from, uint64_t n) const {
    return active && f == file && from < offset + bytes && offset < from + n;
  }
};

// One stream on one device, and everything that must be true at each step.
class World {
 public:
  World(uint64_t seed, bool faults)
      : dice(seed),
        matrices(random_matrices(dice, sizes)),
        schedule(cut()),
        queue(device(faults)),
        arena(std::move(Arena::create(1 << 28, kBudgetMax)).value()) {
    open();
  }

  // Begins anew, with another tile size, ring and set of pins; what was under
  // way is cancelled.
  void open_again() {
    release_all();
    stream.reset();
    ASSERT_EQ(queue.running() + queue.pending(), 0u);
    ASSERT_EQ(arena->committed_bytes(), 0u);
    schedule = cut();
    open();
  }

  void open() {
    plan.pinned = random_pins(dice, schedule);
    plan.ring_slots =
        static_cast<uint32_t>(dice.chance(0.3) ? 2 : dice.between(2, 10));
    plan.slot_bytes = (schedule.slot_bytes_max() + 4095) / 4096 * 4096;
    expect_budget();
    auto made = TileStream::create(schedule, plan, *arena, queue, files);
    ASSERT_TRUE(made.ok()) << made.status().message();
    stream = std::move(made).value();
  }

  std::vector<bool> all() const {
    return std::vector<bool>(schedule.tiles().size(), true);
  }

  void expect_budget() {
    limit = plan.ring_slots * plan.slot_bytes +
            pin_memory(schedule, plan.pinned, arena->page_bytes());
    arena->set_budget(limit);
  }

  // Every byte of every part is the byte of the file.
  void expect_content(const TileStream::View& view) {
    const Tile& tile = schedule.tiles()[view.tile];
    std::vector<std::byte> want;
    for (uint32_t i = 0; i < tile.part_count; ++i) {
      const TilePart& part = tile.parts[i];
      want.resize(part.bytes);
      sim_fill(files[part.file].path(), part.offset, want);
      ASSERT_EQ(std::memcmp(want.data(), view.part[i], part.bytes), 0)
          << "tile " << view.tile << " part " << i;
    }
  }

  void check() {
    stream->check_invariants();
    ASSERT_LE(arena->committed_bytes(), limit);
  }

  // Returns whether the tile came; an error is allowed only if it is due.
  bool acquire(TileId tile) {
    auto got = stream->acquire(tile);
    check();
    if (!got.ok()) {
      EXPECT_EQ(got.status().code(), StatusCode::kIoError);
      EXPECT_THAT(got.status().message(), ::testing::HasSubstr("file-"));
      EXPECT_THAT(got.status().message(), ::testing::HasSubstr("offset"));
      ++errors;
      return false;
    }
    EXPECT_EQ(got->tile, tile);
    expect_content(*got);
    held.push_back(*got);
    return true;
  }

  void release(size_t i) {
    expect_content(held[i]);  // nobody wrote there meanwhile
    const TileId tile = held[i].tile;
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    stream->release(tile);
    check();
  }

  void release_all() {
    while (!held.empty()) release(dice.below(held.size()));
  }

  bool is_held(TileId tile) const {
    return std::any_of(held.begin(), held.end(), [&](const auto& view) {
      return view.tile == tile;
    });
  }

  void use(TileId tile) {
    if (dice.chance(0.5)) {
      queue.advance(1e-6 * static_cast<double>(dice.below(1000)));
    }
    if (dice.chance(0.02)) change_device();
    while (held.size() + 1 >= plan.ring_slots) release(dice.below(held.size()));
    if (!acquire(tile)) return;
    if (dice.chance(0.7)) release(dice.below(held.size()));
  }

  void pass(const std::vector<TileId>& order) {
    for (const TileId tile : order) use(tile);
    if (dice.chance(0.8)) release_all();
    stream->end_pass();
    check();
  }

  // The predicted order, disturbed in one of several ways.
  std::vector<TileId> some_order() {
    std::vector<TileId> order = schedule.order();
    switch (dice.below(7)) {
      case 0:  // neighbours change places
        for (size_t i = 0; i + 1 < order.size(); ++i) {
          if (dice.chance(0.3)) std::swap(order[i], order[i + 1]);
        }
        break;
      case 1:
        std::shuffle(order.begin(), order.end(), dice.engine);
        break;
      case 2:  // some are left out
        std::erase_if(order, [&](TileId) { return dice.chance(0.3); });
        break;
      case 3:  // some come twice
        for (size_t i = dice.below(4); i < order.size(); i += 3) {
          order.insert(order.begin() + static_cast<std::ptrdiff_t>(i),
                       order[dice.below(order.size())]);
        }
        break;
      case 4:  // anything at all
        for (TileId& tile : order) {
          tile = static_cast<TileId>(dice.below(schedule.tiles().size()));
        }
        break;
      case 5:  // interrupted
        order.resize(dice.below(order.size() + 1));
        break;
      default:
        break;
    }
    return order;
  }

  void change_pins() {
    release_all();
    const std::vector<bool> pins = random_pins(dice, schedule);
    // Both sets are never in memory together.
    limit = std::max(limit,
                     plan.ring_slots * plan.slot_bytes +
                         pin_memory(schedule, pins, arena->page_bytes()));
    arena->set_budget(limit);
    plan.pinned = pins;
    const Status status = stream->set_pins(pins);
    ASSERT_TRUE(status.ok()) << status.message();
    expect_budget();
    EXPECT_EQ(arena->committed_bytes(), limit);
    check();
  }

  // Another speed, another pace, or a place that fails until the next change.
  void change_device() {
    queue.set_bytes_per_s(dice.chance(0.5) ? 1e8 : 1e10);
    queue.set_ahead_rate(dice.chance(0.8) ? 0 : 1e6);
    if (!lasting_faults) return;
    bad.active = dice.chance(0.5);
    bad.file = static_cast<uint32_t>(dice.below(2));
    bad.offset = dice.below(sizes[bad.file] + 1);
    bad.bytes = dice.between(1, 3000);
  }

  static constexpr uint64_t kBudgetMax = uint64_t{1} << 28;

  Dice dice;
  std::array<uint64_t, 2> sizes = {};
  std::vector<ScheduledMatrix> matrices;
  Schedule schedule;
  std::vector<File> files;
  bool lasting_faults = false;
  BadPlace bad;
  SimReadQueue queue;
  std::unique_ptr<Arena> arena;
  Plan plan;
  uint64_t limit = 0;
  std::unique_ptr<TileStream> stream;
  std::vector<TileStream::View> held;
  uint64_t errors = 0;

 private:
  Schedule cut() {
    return Schedule(matrices, dice.between(200, 9000), kAlignment);
  }
  SimReadQueue::Options device(bool faults) {
    for (size_t i = 0; i < 2; ++i) {
      files.push_back(File::described(
          "file-" + std::to_string(i), sizes[i] + dice.below(3), kAlignment));
    }
    SimReadQueue::Options options = random_device(dice, faults, 0.05);
    lasting_faults = faults && dice.chance(0.5);
    options.fault = [this](const ReadRequest& r) {
      const auto file = static_cast<uint32_t>(r.file - files.data());
      return bad.hits(file, r.offset, r.bytes) ? EIO : 0;
    };
    return options;
  }
};

uint64_t run_story(uint64_t seed, bool faults, uint64_t* errors = nullptr) {
  World world(seed, faults);
  if (::testing::Test::HasFatalFailure()) return 0;
  const uint64_t passes = world.dice.between(2, 8);
  for (uint64_t i = 0; i < passes; ++i) {
    world.pass(world.some_order());
    if (world.dice.chance(0.25)) world.change_pins();
    if (world.dice.chance(0.15)) world.open_again();
    if (::testing::Test::HasFailure()) return 0;
  }
  if (!faults) {
    EXPECT_EQ(world.errors, 0u);
  }
  world.release_all();
  world.stream.reset();  // with reads under way
  EXPECT_EQ(world.arena->committed_bytes(), 0u);
  EXPECT_EQ(world.queue.running() + world.queue.pending(), 0u);
  if (errors != nullptr) *errors += world.errors;
  return world.queue.trace_hash();
}

TEST(TileStreamSim, AnyOrderGetsTheRightBytesWithinTheBudget) {
  for_seeds(500, [](uint64_t seed) { return run_story(seed, false); });
}

TEST(TileStreamSim, FaultsChangeNothingButTheErrorsOfTilesInNeed) {
  uint64_t errors = 0;
  for_seeds(1000, [&](uint64_t seed) {
    const uint64_t trace = run_story(seed, true, &errors);
    EXPECT_EQ(trace, run_story(seed, true)) << "the same seed, another trace";
    return trace;
  });
  if (std::getenv("FLASH_SEED") != nullptr) return;
  EXPECT_GT(errors, 100u) << "no read failed: the test shows nothing";
}

TEST(TileStreamSim, AnotherSeedGivesAnotherTrace) {
  for_seeds(20, [](uint64_t seed) {
    const uint64_t trace = run_story(seed, true);
    EXPECT_NE(trace, run_story(seed + 1000, true));
    return trace;
  });
}

// What failed while a place was bad comes once it is good again, and nothing
// else failed meanwhile.
TEST(TileStreamSim, ABadPlaceFailsItsTilesAndNoOthersUntilItIsGood) {
  uint64_t failed = 0;
  for_seeds(100, [&](uint64_t seed) {
    World world(seed, false);
    world.bad = {true, 0, world.dice.below(world.sizes[0] + 1), 600};
    for (int pass = 0; pass < 3; ++pass) {
      if (pass == 2) world.bad.active = false;
      for (const TileId tile : world.schedule.order()) {
        bool due = false;
        const Tile& t = world.schedule.tiles()[tile];
        for (uint32_t i = 0; i < t.part_count; ++i) {
          const TilePart& part = t.parts[i];
          const uint64_t from = part.offset / kAlignment * kAlignment;
          const uint64_t to =
              (part.offset + part.bytes + kAlignment - 1) / kAlignment;
          due |= world.bad.hits(part.file, from, to * kAlignment - from);
        }
        const uint64_t before = world.errors;
        const bool came = world.acquire(tile);
        // Pinned tiles and those in the ring are in memory already.
        if (!due) {
          EXPECT_TRUE(came) << "tile " << tile;
        }
        failed += world.errors - before;
        world.release_all();
      }
      world.stream->end_pass();
    }
    return world.queue.trace_hash();
  });
  if (std::getenv("FLASH_SEED") != nullptr) return;
  EXPECT_GT(failed, 100u) << "nothing was bad: the test shows nothing";
}

// The checks above can fail: a byte that the device got wrong, anywhere in a
// tile, is seen.
TEST(TileStreamSim, AWrongByteWouldBeSeen) {
  EXPECT_FATAL_FAILURE(
      {
        World world(7, false);
        world.acquire(world.schedule.order()[0]);
        TileStream::View view = world.held[0];
        const Tile& tile = world.schedule.tiles()[view.tile];
        std::vector<std::byte> copy(view.part[0],
                                    view.part[0] + tile.parts[0].bytes);
        copy.back() ^= std::byte{1};
        view.part[0] = copy.data();
        world.expect_content(view);
      },
      "part 0");
}

}  // namespace
}  // namespace mlx_flash
