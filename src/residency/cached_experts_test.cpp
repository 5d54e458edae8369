// SPDX-License-Identifier: MIT
#include "residency/cached_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <cerrno>
#include <numeric>
#include <string>

#include "io/read_queue_sim.h"
#include "residency/expert_share.h"
#include "residency/testing/router_trace.h"

namespace mlx_flash {
namespace {

using ::testing::HasSubstr;
using testing::RouterTrace;

constexpr uint64_t kSlab = 64 << 10;

// Experts of one matrix of one part, a slab of 64 KiB each, on a device that
// takes a millisecond for each.
class Model {
 public:
  Model(uint32_t layers,
        uint32_t active,
        uint32_t experts,
        uint32_t slots,
        CachedExperts::LookAhead look_ahead = CachedExperts::LookAhead::kNever)
      : layers_(describe(layers, active, experts)),
        schedule(layers_, 8 << 20, 4096),
        queue(device()) {
    files_.push_back(
        File::described("experts", uint64_t{layers} * experts * kSlab, 4096));
    arena = std::move(Arena::create(CachedExperts::address_bytes(
                                        schedule, Arena::system_page_bytes()),
                                    slots * kSlab))
                .value();
    stream =
        std::move(
            CachedExperts::create(
                schedule, slots * kSlab, *arena, queue, files_, look_ahead))
            .value();
  }

  // A whole round; returns the experts in the order in which they came.
  std::vector<uint32_t> round(uint32_t layer,
                              std::span<const uint32_t> experts,
                              uint32_t rows = 1) {
    const std::vector<uint32_t> each(experts.size(), rows);
    EXPECT_TRUE(stream->begin(layer, experts, each).ok());
    std::vector<uint32_t> came;
    for (;;) {
      auto piece = stream->next();
      EXPECT_TRUE(piece.ok()) << piece.status().message();
      if (!piece.ok() || *piece == nullptr) break;
      came.push_back((*piece)->expert);
      stream->release();
    }
    stream->end();
    if (schedule.slabs() < 100) stream->check_invariants();
    return came;
  }

  double replay(const RouterTrace& trace, uint32_t first, uint32_t last) {
    const CachedExperts::Stats before = stream->stats();
    for (uint32_t t = first; t < last; ++t) {
      for (uint32_t l = 0; l < trace.layers(); ++l) round(l, trace.at(t, l));
    }
    const CachedExperts::Stats now = stream->stats();
    return static_cast<double>(now.hits - before.hits) /
           static_cast<double>(now.pieces - before.pieces);
  }

 private:
  static std::vector<ExpertLayer> describe(uint32_t count,
                                           uint32_t active,
                                           uint32_t experts) {
    std::vector<ExpertLayer> layers(count);
    uint64_t at = 0;
    for (uint32_t l = 0; l < count; ++l) {
      layers[l].name = "layer " + std::to_string(l);
      layers[l].experts = experts;
      layers[l].active = active;
      ExpertMatrix& matrix = layers[l].matrices.emplace_back();
      matrix.rows = 16;
      matrix.part_count = 1;
      for (uint32_t e = 0; e < experts; ++e, at += kSlab) {
        matrix.parts.push_back({MatrixPart{0, at, kSlab / 16}});
      }
    }
    return layers;
  }
  SimReadQueue::Options device() {
    SimReadQueue::Options options;
    options.depth = 4;
    options.latency_min_s = options.latency_max_s = 0;
    options.bytes_per_s = kSlab * 1e3;
    options.data = [](const File&, uint64_t, std::span<std::byte>) {};
    options.fault = [this](const ReadRequest& r) {
      return r.offset == broken_at ? EIO : 0;
    };
    return options;
  }

  std::vector<ExpertLayer> layers_;
  std::vector<File> files_;

 public:
  uint64_t broken_at = UINT64_MAX;
  ExpertSchedule schedule;
  SimReadQueue queue;
  std::unique_ptr<Arena> arena;
  std::unique_ptr<CachedExperts> stream;
};

RouterTrace skewed() {
  return std::move(RouterTrace::open(
                       std::string(FLASH_TESTDATA) + "/traces/skewed-48x128.u8",
                       48,
                       8,
                       128))
      .value();
}

TEST(CachedExperts, HitsComeWhileMissesAreOnTheirWay) {
  Model model(2, 4, 16, 16);
  const uint32_t first[] = {1, 2};
  model.round(0, first);
  const uint32_t mixed[] = {7, 1, 9, 2};
  const uint32_t rows[] = {1, 1, 1, 1};
  const double begin = model.queue.now();
  ASSERT_TRUE(model.stream->begin(0, mixed, rows).ok());
  EXPECT_EQ(model.queue.running() + model.queue.pending(), 2u);
  for (const uint32_t expert : {1, 2}) {
    EXPECT_EQ((*model.stream->next())->expert, expert);
    EXPECT_EQ(model.queue.now(), begin);
    model.stream->release();
  }
  for (const uint32_t expert : {7, 9}) {
    EXPECT_EQ((*model.stream->next())->expert, expert);
    model.stream->release();
  }
  EXPECT_GT(model.queue.now(), begin);
  EXPECT_EQ(*model.stream->next(), nullptr);
  model.stream->end();
  EXPECT_EQ(model.stream->stats().hits, 2u);
  EXPECT_EQ(model.stream->stats().pieces, 6u);
}

TEST(CachedExperts, APromptTakesLittleFromWhatIsKept) {
  const RouterTrace trace = skewed();
  std::vector<uint32_t> all(128);
  std::iota(all.begin(), all.end(), 0u);
  double with = 0;
  double without = 0;
  for (const bool prompt : {false, true}) {
    Model model(48, 8, 128, 829);
    model.replay(trace, 0, 100);
    if (prompt) {
      for (uint32_t l = 0; l < 48; ++l) model.round(l, all, 1);
    }
    (prompt ? with : without) = model.replay(trace, 100, 103);
  }
  EXPECT_GT(without, 0.45);
  EXPECT_GT(with, without - 0.06);
}

TEST(CachedExperts, AnErrorNamesItsPlaceAndTheNextRoundTriesAgain) {
  Model model(2, 2, 16, 4);
  model.broken_at = (16 + 5) * kSlab;
  const uint32_t chosen[] = {5, 6};
  const uint32_t rows[] = {1, 1};
  ASSERT_TRUE(model.stream->begin(1, chosen, rows).ok());
  EXPECT_EQ((*model.stream->next())->expert, 6u);  // what can be had comes
  model.stream->release();
  const auto failed = model.stream->next();
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.status().code(), StatusCode::kIoError);
  for (const char* part : {"layer 1, expert 5", "experts", "1376256"}) {
    EXPECT_THAT(failed.status().message(), HasSubstr(part));
  }
  model.stream->end();
  model.stream->check_invariants();
  model.broken_at = UINT64_MAX;
  EXPECT_EQ(model.round(1, chosen), (std::vector<uint32_t>{6, 5}));
}

TEST(CachedExperts, AnInterruptedRoundLeavesOnlyWhatHasStarted) {
  Model model(1, 16, 16, 32);
  std::vector<uint32_t> all(16);
  std::iota(all.begin(), all.end(), 0u);
  const std::vector<uint32_t> rows(16, 1);
  ASSERT_TRUE(model.stream->begin(0, all, rows).ok());
  EXPECT_EQ(model.queue.pending(), 12u);
  model.stream->end();
  EXPECT_EQ(model.queue.pending(), 0u);
  EXPECT_EQ(model.queue.running(), 4u);
  model.stream->check_invariants();
  EXPECT_EQ(model.round(0, all).size(), 16u);
  EXPECT_EQ(model.queue.stats().bytes, 16 * kSlab);  // none read twice
}

TEST(CachedExperts, TheBudgetMovesAndTheBestStay) {
  const RouterTrace trace = skewed();
  Model model(48, 8, 128, 1536);
  model.replay(trace, 0, 100);
  EXPECT_EQ(model.arena->committed_bytes(), 1536 * kSlab);
  model.stream->set_budget(384 * kSlab);
  EXPECT_EQ(model.arena->committed_bytes(), 384 * kSlab);
  model.stream->check_invariants();
  // As good as a cache that has always been so small.
  Model small(48, 8, 128, 384);
  small.replay(trace, 0, 100);
  const double kept = model.replay(trace, 100, 110);
  EXPECT_GT(kept, small.replay(trace, 100, 110) - 0.02);
  EXPECT_GT(kept, 0.25);
  model.arena->set_budget(3000 * kSlab);
  model.stream->set_budget(3000 * kSlab);
  model.replay(trace, 110, 160);
  EXPECT_GT(model.arena->committed_bytes(), 2000 * kSlab);
}

TEST(CachedExperts, WhatWasLearntHelpsTheFirstTokens) {
  const RouterTrace trace = skewed();
  Model fresh(48, 8, 128, 829);
  Model again(48, 8, 128, 829);
  EXPECT_TRUE(again.stream->restore(testing::learn_from(trace, 120)));
  // Until memory is full there is nothing to choose.
  fresh.replay(trace, 120, 125);
  again.replay(trace, 120, 125);
  EXPECT_GT(again.replay(trace, 125, 130),
            fresh.replay(trace, 125, 130) + 0.01);
  EXPECT_FALSE(again.stream->restore(ExpertFrequency::State()));
}

TEST(CachedExperts, LookAheadWaitsForWhatIsNeeded) {
  Model model(2, 4, 16, 24, CachedExperts::LookAhead::kAlways);
  const uint32_t now[] = {0, 1, 2, 3};
  const uint32_t rows[] = {1, 1, 1, 1};
  const uint32_t later[] = {4, 5, 6, 7};
  ASSERT_TRUE(model.stream->begin(0, now, rows).ok());
  model.stream->look_ahead(1, later);
  EXPECT_EQ(model.queue.running() + model.queue.pending(), 4u);
  while (*model.stream->next() != nullptr) model.stream->release();
  EXPECT_LE(model.queue.running() + model.queue.pending(), 2u);
  model.stream->end();
  model.queue.advance(0.0015);  // one has come, one is under way
  // 6 has not been read yet, 8 is new: the one that is under way is not wanted
  // any more, and nothing waits for more than it.
  const uint32_t really[] = {4, 8};
  const double begin = model.queue.now();
  EXPECT_EQ(model.round(1, really), (std::vector<uint32_t>{4, 8}));
  EXPECT_LT(model.queue.now() - begin, 0.0026);
  const CachedExperts::Stats stats = model.stream->stats();
  EXPECT_GE(stats.ahead_used_bytes, kSlab);
  EXPECT_GE(stats.ahead_wasted_bytes, kSlab);
}

TEST(CachedExperts, ABudgetOfLessThanAPieceIsAnError) {
  Model model(1, 2, 4, 4);
  model.stream->set_budget(kSlab - 4096);
  const uint32_t chosen[] = {1};
  const uint32_t rows[] = {1};
  ASSERT_TRUE(model.stream->begin(0, chosen, rows).ok());
  EXPECT_EQ(model.stream->next().status().code(), StatusCode::kExhausted);
  model.stream->end();
  model.stream->set_budget(kSlab);
  EXPECT_EQ(model.round(0, chosen).size(), 1u);
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
// What the plan sets aside for the cache's own tables is what it allocates: the
// geometry of a model of 58 layers of 256 experts.
TEST(CachedExperts, AllocatesWhatThePlanCounts) {
  const auto allocated = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  std::vector<ExpertLayer> layers(58);
  uint64_t at = 0;
  for (ExpertLayer& layer : layers) {
    layer.name = "layer";
    layer.experts = 256;
    layer.active = 8;
    ExpertMatrix& matrix = layer.matrices.emplace_back();
    matrix.rows = 6144;
    matrix.part_count = 1;
    for (uint32_t e = 0; e < 256; ++e, at += 6144 * 4032) {
      matrix.parts.push_back({MatrixPart{0, at, 4032}});
    }
  }
  const ExpertSchedule schedule(layers, 8 << 20, 4096);
  EXPECT_GT(schedule.pieces(), 2 * schedule.slabs());
  std::vector<File> files;
  files.push_back(File::described("experts", at, 4096));
  SimReadQueue queue({});
  const auto arena =
      std::move(Arena::create(CachedExperts::address_bytes(
                                  schedule, Arena::system_page_bytes()),
                              64 << 20)
                    .value());
  const size_t before = allocated();
  const auto stream = CachedExperts::create(schedule,
                                            64 << 20,
                                            *arena,
                                            queue,
                                            files,
                                            CachedExperts::LookAhead::kNever);
  const size_t grown = allocated() - before;
  ASSERT_TRUE(stream.ok()) << stream.status().message();
  const auto counted = static_cast<double>(expert_table_bytes(schedule));
  EXPECT_NEAR(static_cast<double>(grown), counted, 0.05 * counted);
}
#endif

}  // namespace
}  // namespace mlx_flash
