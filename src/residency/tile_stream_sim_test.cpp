// SPDX-License-Identifier: MIT

// Random schedules, budgets, orders, latencies and faults on a simulated
// device, in one thread and virtual time. FLASH_SEED=n runs only seed n.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <set>
#include <vector>

#include "io/read_queue_sim.h"
#include "residency/tile_stream.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kAlignment = 512;

struct Dice {
  explicit Dice(uint64_t seed) : engine(seed) {}
  uint64_t below(uint64_t n) { return engine() % n; }
  uint64_t between(uint64_t low, uint64_t high) {
    return low + below(high - low + 1);
  }
  bool chance(double p) {
    return static_cast<double>(engine() >> 11) * 0x1p-53 < p;
  }
  std::mt19937_64 engine;
};

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

SimReadQueue::Options random_device(Dice& dice, bool faults) {
  SimReadQueue::Options o;
  o.seed = dice.engine();
  o.depth = static_cast<int>(dice.between(1, 12));
  o.latency_max_s = dice.chance(0.3) ? 5e-3 : 3e-4;
  o.bytes_per_s = dice.chance(0.5) ? 1e8 : 1e10;
  if (faults) {
    o.short_rate = dice.chance(0.5) ? 0.2 : 0;
    o.interrupt_rate = dice.chance(0.5) ? 0.1 : 0;
    o.eio_rate = dice.chance(0.5) ? 0.05 : 0;
  }
  return o;
}

// One stream on one device, and everything that must be true at each step.
class World {
 public:
  World(uint64_t seed, bool faults)
      : dice(seed),
        schedule(make_schedule()),
        queue(device(faults)),
        budget(2 * pin_memory(schedule, all(), 4096) + (1 << 20)),
        arena(std::move(Arena::create(1 << 28, budget)).value()) {
    plan.pinned = random_pins(dice, schedule);
    plan.ring_slots =
        static_cast<uint32_t>(dice.chance(0.3) ? 2 : dice.between(2, 10));
    plan.slot_bytes = (schedule.slot_bytes_max() + 4095) / 4096 * 4096;
    expect_budget();
    open();
  }

  void open() {
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
      EXPECT_THAT(got.status().message(), testing::HasSubstr("file-"));
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

  Dice dice;
  std::array<uint64_t, 2> sizes = {};
  Schedule schedule;
  std::vector<File> files;
  SimReadQueue queue;
  uint64_t budget;
  std::unique_ptr<Arena> arena;
  Plan plan;
  uint64_t limit = 0;
  std::unique_ptr<TileStream> stream;
  std::vector<TileStream::View> held;
  uint64_t errors = 0;

 private:
  Schedule make_schedule() {
    auto matrices = random_matrices(dice, sizes);
    return Schedule(std::move(matrices), dice.between(200, 9000), kAlignment);
  }
  SimReadQueue::Options device(bool faults) {
    for (size_t i = 0; i < 2; ++i) {
      files.push_back(File::described(
          "file-" + std::to_string(i), sizes[i] + dice.below(3), kAlignment));
    }
    return random_device(dice, faults);
  }
};

// Runs `body` for many seeds, or for FLASH_SEED alone.
template <typename Body>
void for_seeds(uint64_t count, const Body& body) {
  if (const char* only = std::getenv("FLASH_SEED")) {
    body(std::strtoull(only, nullptr, 10));
    return;
  }
  for (uint64_t seed = 1; seed <= count; ++seed) {
    SCOPED_TRACE("FLASH_SEED=" + std::to_string(seed));
    body(seed);
    if (testing::Test::HasFailure()) return;
  }
}

uint64_t run_story(uint64_t seed, bool faults) {
  World world(seed, faults);
  if (testing::Test::HasFatalFailure()) return 0;
  const uint64_t passes = world.dice.between(2, 8);
  for (uint64_t i = 0; i < passes; ++i) {
    world.pass(world.some_order());
    if (world.dice.chance(0.25)) world.change_pins();
    if (testing::Test::HasFailure()) return 0;
  }
  if (!faults) {
    EXPECT_EQ(world.errors, 0u);
  }
  world.release_all();
  world.stream.reset();  // with reads under way
  EXPECT_EQ(world.arena->committed_bytes(), 0u);
  EXPECT_EQ(world.queue.running() + world.queue.pending(), 0u);
  return world.queue.trace_hash();
}

TEST(TileStreamSim, AnyOrderGetsTheRightBytesWithinTheBudget) {
  for_seeds(600, [](uint64_t seed) { run_story(seed, false); });
}

TEST(TileStreamSim, FaultsChangeNothingButTheErrorsOfTilesInNeed) {
  for_seeds(600, [](uint64_t seed) { run_story(seed, true); });
}

TEST(TileStreamSim, SameSeedGivesTheSameTrace) {
  for_seeds(20, [](uint64_t seed) {
    const uint64_t first = run_story(seed, true);
    EXPECT_EQ(first, run_story(seed, true));
    EXPECT_NE(first, run_story(seed + 1000, true));
  });
}

}  // namespace
}  // namespace mlx_flash
