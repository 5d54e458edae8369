// SPDX-License-Identifier: MIT

// Random experts, budgets, routings, latencies and faults on a simulated
// device, in one thread and virtual time.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "io/read_queue_sim.h"
#include "residency/cached_experts.h"
#include "residency/expert_slots.h"
#include "residency/testing/simulation.h"

namespace mlx_flash {
namespace {

using testing::Dice;
using testing::for_seeds;
using testing::one_seed;
using testing::random_device;

constexpr uint64_t kAlignment = 512;

// The parts of all experts of one matrix: stacked in one tensor, or each
// expert's by itself, its parts side by side.
ExpertMatrix random_matrix(Dice& dice,
                           uint32_t experts,
                           std::array<uint64_t, 2>& sizes) {
  ExpertMatrix m;
  m.rows = dice.between(1, 24);
  m.cols = 32;
  m.part_count = static_cast<uint32_t>(dice.between(1, 3));
  m.parts.resize(experts);
  std::array<uint64_t, kExpertPartsMax> row = {};
  for (uint64_t& bytes : row) bytes = dice.between(1, 200);
  row[0] = dice.between(1, 700);
  const auto put = [&](uint32_t file, uint64_t bytes, MatrixPart* part) {
    *part = {file, sizes[file], bytes};
    sizes[file] += m.rows * bytes;
  };
  const auto file = static_cast<uint32_t>(dice.below(2));
  const bool bias = dice.chance(0.3);
  if (bias) m.bias.resize(experts);
  sizes[file] += dice.below(700);
  if (dice.chance(0.5)) {
    for (uint32_t p = 0; p < m.part_count; ++p) {
      for (uint32_t e = 0; e < experts; ++e) put(file, row[p], &m.parts[e][p]);
    }
    for (MatrixPart& part : m.bias) put(file, row[3], &part);
  } else {
    for (uint32_t e = 0; e < experts; ++e) {
      for (uint32_t p = 0; p < m.part_count; ++p) {
        put(file, row[p], &m.parts[e][p]);
      }
      if (bias) put(1 - file, row[3], &m.bias[e]);
      sizes[file] += dice.below(100);
    }
  }
  return m;
}

std::vector<ExpertLayer> random_layers(Dice& dice,
                                       std::array<uint64_t, 2>& sizes) {
  std::vector<ExpertLayer> layers(dice.between(1, 5));
  const auto experts = static_cast<uint32_t>(dice.between(1, 12));
  for (size_t i = 0; i < layers.size(); ++i) {
    ExpertLayer& layer = layers[i];
    layer.name = "layer " + std::to_string(i);
    layer.experts = experts;
    layer.active = static_cast<uint32_t>(dice.between(1, experts));
    const uint64_t matrices = dice.between(1, 3);
    for (uint64_t m = 0; m < matrices; ++m) {
      layer.matrices.push_back(random_matrix(dice, experts, sizes));
    }
  }
  return layers;
}

// One stream on one device, and everything that must be true at each step.
class World {
 public:
  World(uint64_t seed, bool faults)
      : dice(seed), schedule(make_schedule()), queue(device(faults)) {
    for (size_t i = 0; i < 2; ++i) {
      files.push_back(File::described(
          "file-" + std::to_string(i), sizes[i] + dice.below(3), kAlignment));
    }
    for (const auto& c : schedule.classes(4096)) {
      all_bytes += c.pieces * c.slot_bytes;
      piece_bytes = std::max(piece_bytes, c.slot_bytes);
    }
    budget = random_budget();
    arena = std::move(Arena::create(1 << 28, budget)).value();
    auto made = CachedExperts::create(schedule,
                                      budget,
                                      *arena,
                                      queue,
                                      files,
                                      dice.chance(0.7)
                                          ? CachedExperts::LookAhead::kAlways
                                          : CachedExperts::LookAhead::kGate);
    EXPECT_TRUE(made.ok()) << made.status().message();
    stream = std::move(made).value();
  }

  // From one piece to more than everything.
  uint64_t random_budget() {
    if (dice.chance(0.2)) return piece_bytes;
    if (dice.chance(0.1)) return all_bytes + 8192;
    return dice.between(piece_bytes, std::max(piece_bytes, all_bytes));
  }

  void check() {
    stream->check_invariants();
    ASSERT_LE(arena->committed_bytes(), budget);
  }

  void expect_part(const MatrixPart& part,
                   const ExpertStream::Rows& rows,
                   const std::byte* at) {
    std::vector<std::byte> want((rows.row_end - rows.row_begin) *
                                part.row_bytes);
    sim_fill(files[part.file].path(),
             part.offset + rows.row_begin * part.row_bytes,
             want);
    if (std::memcmp(want.data(), at, want.size()) != 0) ++wrong_parts;
  }

  // Every byte of every row of every matrix, in order and once.
  void expect_piece(uint32_t layer, const ExpertStream::Piece& piece) {
    const ExpertLayer& what = schedule.layers()[layer];
    auto& done = progress[piece.expert];
    for (uint32_t i = 0; i < piece.rows_count; ++i) {
      const ExpertStream::Rows& rows = piece.rows[i];
      const ExpertMatrix& m = what.matrices[rows.matrix];
      ASSERT_EQ(done,
                (std::pair<uint32_t, uint64_t>{rows.matrix, rows.row_begin}));
      ASSERT_LT(rows.row_begin, rows.row_end);
      for (uint32_t p = 0; p < m.part_count; ++p) {
        expect_part(m.parts[piece.expert][p], rows, rows.part[p]);
      }
      ASSERT_EQ(rows.bias == nullptr, m.bias.empty());
      if (rows.bias != nullptr) {
        expect_part(m.bias[piece.expert], rows, rows.bias);
      }
      done.second = rows.row_end;
      if (done.second == m.rows) done = {done.first + 1, 0};
    }
    ASSERT_EQ(piece.last, done.first == what.matrices.size());
  }

  // The experts that a router might choose: few, skewed; a prompt's, many.
  std::vector<uint32_t> choose(uint32_t layer) {
    const ExpertLayer& what = schedule.layers()[layer];
    std::vector<uint32_t> all(what.experts);
    std::iota(all.begin(), all.end(), 0u);
    std::shuffle(all.begin(), all.end(), dice.engine);
    if (dice.chance(0.5)) std::sort(all.begin(), all.end());
    all.resize(dice.chance(0.3) ? dice.between(0, what.experts) : what.active);
    return all;
  }

  void compute() {
    if (dice.chance(0.5)) {
      queue.advance(1e-6 * static_cast<double>(dice.below(3000)));
    }
  }

  // Returns whether all pieces came.
  bool round(uint32_t layer, bool interrupt) {
    // A prediction is often right.
    const bool right = layer == predicted_layer && dice.chance(0.7);
    const std::vector<uint32_t> experts = right ? predicted : choose(layer);
    const uint64_t most = dice.chance(0.3) ? 9 : 1;
    std::vector<uint32_t> rows;
    for (size_t i = 0; i < experts.size(); ++i) {
      rows.push_back(static_cast<uint32_t>(dice.between(1, most)));
    }
    progress.clear();
    EXPECT_TRUE(stream->begin(layer, experts, rows).ok());
    check();
    if (dice.chance(0.5)) predict(layer);
    const uint64_t stop = interrupt ? dice.below(4) : UINT64_MAX;
    bool whole = true;
    for (uint64_t i = 0;; ++i) {
      if (i == stop) {
        whole = false;
        break;
      }
      auto piece = stream->next();
      check();
      if (!piece.ok()) {
        EXPECT_EQ(piece.status().code(), StatusCode::kIoError);
        EXPECT_THAT(piece.status().message(), ::testing::HasSubstr("file-"));
        EXPECT_THAT(piece.status().message(), ::testing::HasSubstr("expert"));
        ++errors;
        whole = false;
        if (dice.chance(0.5)) continue;  // tried again
        break;
      }
      if (*piece == nullptr) break;
      compute();
      expect_piece(layer, **piece);
      if (::testing::Test::HasFailure()) return false;
      if (i + 1 == stop && dice.chance(0.5)) {  // still held
        whole = false;
        break;
      }
      stream->release();
      check();
    }
    stream->end();
    check();
    if (whole) {
      EXPECT_EQ(progress.size(), experts.size());
      for (const uint32_t e : experts) {
        EXPECT_EQ(progress[e].first, schedule.layers()[layer].matrices.size());
      }
    }
    return whole;
  }

  void predict(uint32_t layer) {
    const auto count = static_cast<uint32_t>(schedule.layers().size());
    const uint32_t next = (layer + 1) % count;
    predicted = choose(next);
    predicted_layer = next;
    stream->look_ahead(next, predicted);
    check();
  }

  void move_budget() {
    budget = random_budget();
    const uint64_t before = arena->committed_bytes();
    arena->set_budget(std::max(budget, before));
    stream->set_budget(budget);
    arena->set_budget(budget);
    check();
  }

  Dice dice;
  std::array<uint64_t, 2> sizes = {};
  std::vector<ExpertLayer> layers;
  ExpertSchedule schedule;
  std::vector<File> files;
  SimReadQueue queue;
  uint64_t all_bytes = 0;
  uint64_t piece_bytes = 0;
  uint64_t budget = 0;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<CachedExperts> stream;
  // By expert: the matrix and row that come next.
  std::map<uint32_t, std::pair<uint32_t, uint64_t>> progress;
  std::vector<uint32_t> predicted;
  uint32_t predicted_layer = UINT32_MAX;
  uint64_t errors = 0;
  uint64_t wrong_parts = 0;
  // Two stretches of one file that have changed places on the disk.
  const File* swapped_file = nullptr;
  uint64_t swap_a = 0;
  uint64_t swap_b = 0;
  uint64_t swap_bytes = 0;

 private:
  SimReadQueue::Options device(bool faults) {
    SimReadQueue::Options options = random_device(dice, faults, 0.1);
    options.data =
        [this](const File& file, uint64_t offset, std::span<std::byte> out) {
          sim_fill(file.path(), offset, out);
          if (&file != swapped_file) return;
          for (size_t i = 0; i < out.size(); ++i) {
            const uint64_t at = offset + i;
            uint64_t from = at;
            if (at - swap_a < swap_bytes) from = swap_b + (at - swap_a);
            if (at - swap_b < swap_bytes) from = swap_a + (at - swap_b);
            if (from != at) out[i] = sim_byte(file.path(), from);
          }
        };
    return options;
  }

  ExpertSchedule make_schedule() {
    layers = random_layers(dice, sizes);
    EXPECT_TRUE(ExpertSchedule::check(layers).ok());
    return ExpertSchedule(layers, dice.between(100, 60000), kAlignment);
  }
};

struct Seen {
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t evictions = 0;
  uint64_t cut = 0;  // schedules whose slabs are in several pieces
  uint64_t ahead_used = 0;
  uint64_t ahead_wasted = 0;
  uint64_t errors = 0;  // reads that failed for good
};

uint64_t run_story(uint64_t seed, bool faults, Seen* seen = nullptr) {
  World world(seed, faults);
  if (::testing::Test::HasFailure()) return 0;
  const uint64_t passes = world.dice.between(2, 8);
  for (uint64_t i = 0; i < passes; ++i) {
    for (uint32_t l = 0; l < world.schedule.layers().size(); ++l) {
      const bool interrupt = world.dice.chance(0.1);
      const bool whole = world.round(l, interrupt);
      EXPECT_TRUE(whole || faults || interrupt);
      if (::testing::Test::HasFailure()) return 0;
      world.compute();
    }
    if (world.dice.chance(0.25)) world.move_budget();
    if (::testing::Test::HasFailure()) return 0;
  }
  if (!faults) {
    EXPECT_EQ(world.errors, 0u);
  }
  EXPECT_EQ(world.wrong_parts, 0u);
  if (seen != nullptr) {
    const CachedExperts::Stats stats = world.stream->stats();
    seen->hits += stats.hits;
    seen->misses += stats.pieces - stats.hits;
    seen->evictions += stats.evictions;
    seen->ahead_used += stats.ahead_used_bytes;
    seen->ahead_wasted += stats.ahead_wasted_bytes;
    seen->errors += world.errors;
    seen->cut += world.schedule.pieces() > world.schedule.slabs() ? 1 : 0;
  }
  world.stream.reset();  // with reads under way
  EXPECT_EQ(world.arena->committed_bytes(), 0u);
  EXPECT_EQ(world.queue.running() + world.queue.pending(), 0u);
  return world.queue.trace_hash();
}

TEST(CachedExpertsSim, AnyRoutingGetsTheRightBytesWithinTheBudget) {
  Seen seen;
  for_seeds(600, [&](uint64_t seed) { return run_story(seed, false, &seen); });
  if (one_seed()) return;  // one shows little
  EXPECT_EQ(seen.errors, 0u);
  EXPECT_GT(seen.hits, 0u);
  EXPECT_GT(seen.misses, 0u);
  EXPECT_GT(seen.evictions, 0u);
  EXPECT_GT(seen.cut, 0u);
  EXPECT_GT(seen.ahead_used, 0u);
  EXPECT_GT(seen.ahead_wasted, 0u);
}

// Two experts of a layer change places on the disk: whoever uses either must
// notice, or this test could not see a wrong one.
TEST(CachedExpertsSim, TwoSwappedExpertsAreNoticed) {
  uint64_t noticed = 0;
  for_seeds(60, [&](uint64_t seed) -> uint64_t {
    // With faults, too: a read that is tried again is still the right one.
    World world(seed, seed % 2 == 0);
    const ExpertLayer& layer = world.schedule.layers()[0];
    const ExpertMatrix& matrix = layer.matrices[0];
    if (layer.experts < 2) return 0;
    const MatrixPart& a = matrix.parts[0][0];
    const MatrixPart& b = matrix.parts[1][0];
    world.swapped_file = &world.files[a.file];
    world.swap_a = a.offset;
    world.swap_b = b.offset;
    world.swap_bytes = matrix.rows * a.row_bytes;
    const uint32_t both[] = {0, 1};
    const uint32_t rows[] = {1, 1};
    world.progress.clear();
    EXPECT_TRUE(world.stream->begin(0, both, rows).ok());
    for (;;) {
      const auto piece = world.stream->next();
      if (!piece.ok()) continue;  // a fault: tried again
      if (*piece == nullptr) break;
      world.expect_piece(0, **piece);
      world.stream->release();
    }
    world.stream->end();
    EXPECT_GE(world.wrong_parts, 2u);
    ++noticed;
    return world.queue.trace_hash();
  });
  if (one_seed()) return;
  EXPECT_GT(noticed, 30u);
}

TEST(CachedExpertsSim, FaultsChangeNothingButTheErrorsOfExpertsInNeed) {
  Seen seen;
  for_seeds(600, [&](uint64_t seed) { return run_story(seed, true, &seen); });
  if (one_seed()) return;
  EXPECT_GT(seen.errors, 0u);
  EXPECT_GT(seen.evictions, 0u);
}

TEST(CachedExpertsSim, SameSeedGivesTheSameTrace) {
  for_seeds(20, [](uint64_t seed) {
    const uint64_t first = run_story(seed, true);
    EXPECT_EQ(first, run_story(seed, true));
    EXPECT_NE(first, run_story(seed + 1000, true));
    return first;
  });
}

}  // namespace
}  // namespace mlx_flash
