// SPDX-License-Identifier: MIT

// What is fused into a product gives the bits of the plain sequence: the whole
// product, then a pass of its own. For every instruction set, ragged tiles,
// pinned or not, any number of rows and threads.

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/fixed_point.h"
#include "kernels/reference.h"
#include "kernels/test_matrix.h"
#include "kernels/vector_ops.h"
#include "nn/fast_ops.h"
#include "residency/schedule.h"

namespace mlx_flash::nn {
namespace {

using kernels::ForcedTarget;
using kernels::random_floats;
using kernels::TestMatrix;

constexpr size_t kCols = 256;
constexpr size_t kRows = 203;  // no multiple of anything

// Tiles that are all there; every third run of seven is not pinned.
class TilesInMemory : public TileStream {
 public:
  TilesInMemory(const Schedule& schedule,
                const std::vector<const TestMatrix*>& matrices)
      : schedule_(schedule), matrices_(matrices) {}

  Result<View> acquire(TileId id) override {
    ++held_;
    return view(id);
  }
  void release(TileId) override { --held_; }
  bool peek_pinned(TileId id, View* out) const override {
    *out = view(id);
    return id / 7 % 3 != 0;
  }
  void end_pass() override {}
  Status set_pins(const std::vector<bool>&) override { return Status(); }
  Stats stats() const override { return {}; }
  void check_invariants() const override {}
  int held() const { return held_; }

 private:
  View view(TileId id) const {
    const Tile& tile = schedule_.tiles()[id];
    const kernels::WeightRows& w = matrices_[tile.matrix]->rows();
    const RowBytes row = row_bytes(w.format, w.cols);
    View view{.tile = id};
    view.part[0] = w.weight + tile.row_begin * row.weight;
    if (row.scales != 0) view.part[1] = w.scales + tile.row_begin * row.scales;
    if (row.biases != 0) view.part[2] = w.biases + tile.row_begin * row.biases;
    return view;
  }

  const Schedule& schedule_;
  const std::vector<const TestMatrix*>& matrices_;
  int held_ = 0;
};

ScheduledMatrix scheduled(const WeightFormat& format) {
  const RowBytes row = row_bytes(format, kCols);
  ScheduledMatrix m;
  m.name = "m";
  m.format = format;
  m.rows = kRows;
  m.cols = kCols;
  for (const uint64_t bytes : {row.weight, row.scales, row.biases}) {
    if (bytes != 0) m.parts[m.part_count++] = {0, 0, bytes};
  }
  return m;
}

SmallTensor small(size_t n, kernels::Random& random) {
  return {.values = random_floats(n, random), .array = std::nullopt};
}

// Two matrices, maybe of different formats, and rows of x.
struct Case {
  Case(const WeightFormat& gate_format,
       const WeightFormat& up_format,
       size_t tokens,
       bool bias)
      : random(tokens + bias),
        gate_matrix(gate_format, kRows, kCols, random),
        up_matrix(up_format, kRows, kCols, random),
        x(random_floats(tokens * kCols, random)),
        rows(tokens) {
    x[(tokens - 1) * kCols + 5] = 1e25f;  // does not fit fixed point
    gate = {.matrix = 0, .rows = kRows, .cols = kCols, .bias = std::nullopt};
    up = {.matrix = 1, .rows = kRows, .cols = kCols, .bias = std::nullopt};
    if (!bias) return;
    gate.bias = small(kRows, random);
    up.bias = small(kRows, random);
  }

  // The product as a whole, on one thread.
  std::vector<float> plain(const Linear& linear,
                           const TestMatrix& matrix) const {
    const kernels::WeightRows& w = matrix.rows();
    AlignedBuffer prepared(kernels::prepared_bytes(w.format, kCols, rows) + 64,
                           64);
    AlignedBuffer scratch(kernels::matmul_scratch_bytes(), 64);
    kernels::MatmulInput input = {x.data(), kCols, rows, nullptr};
    if (kernels::integer_coded(w.format)) {
      kernels::prepare_fixed(
          w.format, kCols, x.data(), kCols, 0, rows, prepared.data());
      input.prepared = prepared.data();
    }
    std::vector<float> y(rows * kRows);
    kernels::matmul(w, 0, kRows, input, y.data(), kRows, scratch.data());
    if (!linear.bias) return y;
    for (size_t t = 0; t < rows; ++t) {
      for (size_t r = 0; r < kRows; ++r) {
        y[t * kRows + r] += linear.bias->values[r];
      }
    }
    return y;
  }

  kernels::Random random;
  TestMatrix gate_matrix;
  TestMatrix up_matrix;
  std::vector<float> x;
  size_t rows;
  Linear gate;
  Linear up;
};

// Runs fn(context) with the case's matrices in tiles of `tile_rows` rows.
template <class Fn>
void with_context(const Case& c, size_t tile_rows, int threads, const Fn& fn) {
  const uint64_t row_bytes_most =
      std::max(c.gate_matrix.bytes() / kRows, c.up_matrix.bytes() / kRows);
  const Schedule schedule({scheduled(c.gate_matrix.rows().format),
                           scheduled(c.up_matrix.rows().format)},
                          row_bytes_most * tile_rows,
                          1);
  const std::vector<const TestMatrix*> matrices = {&c.gate_matrix,
                                                   &c.up_matrix};
  TilesInMemory tiles(schedule, matrices);
  ThreadPool pool(threads);
  const std::atomic<bool> never = false;
  Context context;
  context.pool = &pool;
  context.schedule = &schedule;
  context.tiles = &tiles;
  context.interrupted = &never;
  context.reserve_scratch(1,
                          c.rows * kernels::prepared_row_bytes_max(kCols),
                          threads,
                          kernels::matmul_scratch_bytes());
  fn(context);
  EXPECT_TRUE(context.failure.ok());
  EXPECT_EQ(tiles.held(), 0);
}

void expect_same(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(kernels::same_bits(a[i], b[i]))
        << "row " << i / kRows << ", " << i % kRows << ": " << a[i] << ", "
        << b[i];
  }
}

void check_case(const Case& c, Activation activation, float multiplier) {
  const std::vector<float> gates = c.plain(c.gate, c.gate_matrix);
  const std::vector<float> ups = c.plain(c.up, c.up_matrix);
  std::vector<float> activated = gates;
  fast::activate(activation, ups.data(), ups.size(), activated.data());
  std::vector<float> added = gates;
  for (size_t i = 0; i < added.size(); ++i) {
    if (multiplier != 1) added[i] *= multiplier;
    added[i] = ups[i] + added[i];
  }
  for (const size_t tile_rows : {1000, 50, 7}) {
    for (const int threads : {1, 2, 3, 8}) {
      SCOPED_TRACE(testing::Message() << c.rows << " rows, tiles of "
                                      << tile_rows << ", threads " << threads);
      with_context(c, tile_rows, threads, [&](Context& context) {
        std::vector<float> y(c.rows * kRows);
        fast::Input input(context, c.x.data(), c.rows, kCols);
        fast::gated(context, c.gate, c.up, activation, input, y.data());
        expect_same(y, activated);
        fast::linear_add(context,
                         c.gate,
                         c.x.data(),
                         c.rows,
                         multiplier,
                         ups.data(),
                         y.data());
        expect_same(y, added);
      });
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Fused, GatedAndAddedEqualThePlainSequence) {
  constexpr Activation kActivations[] = {
      Activation::kSilu, Activation::kGeluTanh, Activation::kSwigluClipped};
  const WeightFormat affine = {.kind = WeightKind::kAffine,
                               .bits = 4,
                               .group_size = 64,
                               .scale_dtype = DType::kBF16};
  const auto all = kernels::reference::all_formats();
  const WeightFormat block =
      *std::find_if(all.begin(), all.end(), [](const WeightFormat& f) {
        return f.kind == WeightKind::kQ4_K;
      });
  const WeightFormat dense = dense_format(DType::kBF16);
  const std::pair<WeightFormat, WeightFormat> formats[] = {
      {affine, affine}, {block, affine}, {dense, dense}, {affine, dense}};
  for (const int64_t target : kernels::runnable_targets()) {
    const ForcedTarget forced(target);
    SCOPED_TRACE(kernels::target_label(target));
    size_t i = 0;
    for (const auto& [gate, up] : formats) {
      for (const size_t tokens : {1, 2, 7, 64, 259}) {
        const bool bias = i % 2 != 0;
        check_case(Case(gate, up, tokens, bias),
                   kActivations[i % 3],
                   bias ? 0.22f : 1.0f);
        if (testing::Test::HasFatalFailure()) return;
        ++i;
      }
    }
  }
}

void check_head(Case& c, float divisor) {
  if (c.rows > 2) std::fill_n(c.x.begin() + kCols, kCols, 0.0f);  // all equal
  std::vector<float> logits = c.plain(c.gate, c.gate_matrix);
  for (float& v : logits) v /= divisor;
  for (const size_t tile_rows : {1000, 50, 7}) {
    for (const int threads : {1, 2, 3, 8}) {
      for (const size_t most : {1, 40}) {
        with_context(c, tile_rows, threads, [&](Context& context) {
          Ranking ranking(c.rows, most, threads);
          std::vector<float> y(c.rows * kRows);
          fast::head(
              context, c.gate, c.x.data(), c.rows, divisor, &ranking, y.data());
          expect_same(y, logits);
          for (size_t t = 0; t < c.rows; ++t) {
            const float* row = logits.data() + t * kRows;
            std::vector<kernels::Ranked> best(most);
            best.resize(kernels::rank(row, kRows, 0, most, best.data(), 0));
            const auto joined = ranking.join(t);
            ASSERT_EQ(joined.size(), best.size());
            ASSERT_EQ(joined[0].id, kernels::argmax(row, kRows));
            for (size_t i = 0; i < best.size(); ++i) {
              ASSERT_EQ(joined[i].id, best[i].id) << t << ", " << i;
              ASSERT_TRUE(kernels::same_bits(joined[i].value, best[i].value));
            }
          }
        });
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Fused, RankedLogitsEqualAScanOfAll) {
  const auto all = kernels::reference::all_formats();
  for (const int64_t target : kernels::runnable_targets()) {
    const ForcedTarget forced(target);
    SCOPED_TRACE(kernels::target_label(target));
    for (const WeightFormat& format : {all.front(), all.back()}) {
      for (const size_t tokens : {1, 2, 7, 64}) {
        Case c(format, format, tokens, false);
        check_head(c, tokens == 7 ? 3.0f : 1.0f);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace mlx_flash::nn
