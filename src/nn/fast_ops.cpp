// SPDX-License-Identifier: MIT
#include "nn/fast_ops.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/clock.h"
#include "kernels/dequantize.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "kernels/vector_ops.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn::fast {
namespace {

// Pinned neighbours that threads multiply without meeting in between.
constexpr size_t kRunTiles = 16;

// Rows of x that are made ready in one piece.
constexpr size_t kPrepareGrain = 4;

// Rows of x that gated() takes at a time: those of one panel of the kernels.
constexpr size_t kGatedTokens = 256;
static_assert(kGatedTokens * kernels::kRowGrain <= Context::kThreadFloats);

constexpr float kClippedAlpha = 1.702f;
constexpr float kClippedLimit = 7.0f;

void scale(float* x, size_t n, float multiplier) {
  if (multiplier == 1.0f) return;
  for (size_t i = 0; i < n; ++i) x[i] *= multiplier;
}

// Puts the rows of the file in the order of the published model, head by head.
void unpermute(const Linear& linear, size_t rows, float* y) {
  const uint32_t head_dim = linear.rows / linear.heads;
  std::array<float, kernels::kHeadDimMax> head;
  for (size_t t = 0; t < rows; ++t) {
    for (uint32_t h = 0; h < linear.heads; ++h, y += head_dim) {
      for (uint32_t i = 0; i < head_dim; ++i) {
        head[i % 2 * (head_dim / 2) + i / 2] = y[i];
      }
      std::memcpy(y, head.data(), head_dim * sizeof(float));
    }
  }
}

// Tiles of a matrix, one after the other, that are in memory together.
class TileRun {
 public:
  TileRun(Context& context, const ScheduledMatrix& matrix)
      : context_(context), matrix_(matrix) {}

  // Acquires tile `first` and, if it is pinned, those after it that are.
  Status acquire(TileId first) {
    TileStream& tiles = *context_.tiles;
    const TileId end = std::min<TileId>(matrix_.first_tile + matrix_.tile_count,
                                        first + kRunTiles);
    TileStream::View view;
    const bool pinned = tiles.peek_pinned(first, &view);
    for (TileId id = first; id < end; ++id) {
      if (id > first && !(pinned && tiles.peek_pinned(id, &view))) break;
      auto acquired = tiles.acquire(id);
      if (!acquired.ok()) return acquired.status().at(matrix_.name);
      const Tile& tile = context_.schedule->tiles()[id];
      parts_[count_++] = {
          id, rows_, tile.row_begin, tile_rows(matrix_, tile, *acquired)};
      rows_ += parts_[count_ - 1].weights.rows;
    }
    return Status();
  }
  void release() {
    for (size_t i = 0; i < count_; ++i) context_.tiles->release(parts_[i].id);
  }

  uint32_t count() const { return static_cast<uint32_t>(count_); }
  size_t rows() const { return rows_; }

  // Rows [begin, end) of `weights`, rows row_begin and on of the matrix.
  struct Rows {
    const kernels::WeightRows& weights;
    size_t begin;
    size_t end;
    size_t row_begin;
  };
  // Calls fn(Rows) for rows [begin, end) of the run, tile by tile.
  template <class Fn>
  void each_part(size_t begin, size_t end, const Fn& fn) const {
    for (size_t i = 0; i < count_; ++i) {
      const Part& part = parts_[i];
      const size_t from = std::max(begin, part.first);
      const size_t to = std::min(end, part.first + part.weights.rows);
      if (from >= to) continue;
      fn(Rows{part.weights,
              from - part.first,
              to - part.first,
              part.row_begin + (from - part.first)});
    }
  }

 private:
  struct Part {
    TileId id;
    size_t first;      // its first row in the run
    size_t row_begin;  // and in the matrix
    kernels::WeightRows weights;
  };
  Context& context_;
  const ScheduledMatrix& matrix_;
  std::array<Part, kRunTiles> parts_;
  size_t count_ = 0;
  size_t rows_ = 0;
};

}  // namespace

void norm_rows(Context& context,
               const Norm& norm,
               const float* x,
               size_t rows,
               size_t n,
               float* out) {
  if (!context.failure.ok()) return;
  context.pool->parallel_for(rows, 4, [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      kernels::rms_norm(
          x + t * n,
          norm.weight.values.empty() ? nullptr : norm.weight.values.data(),
          norm.eps,
          n,
          out + t * n);
    }
  });
}

const kernels::MatmulInput& Input::of(const WeightFormat& format) {
  if (format_ && *format_ == format) return input_;
  format_ = format;
  input_.prepared = nullptr;
  const size_t bytes =
      kernels::prepared_bytes(format, input_.stride, input_.tokens);
  if (bytes == 0) return input_;
  std::byte* out = context_.prepared(bytes);
  context_.pool->parallel_for(
      input_.tokens, kPrepareGrain, [&](size_t begin, size_t end, int) {
        kernels::prepare_fixed(
            format, input_.stride, input_.x, input_.stride, begin, end, out);
      });
  input_.prepared = out;
  return input_;
}

namespace {

// Calls fn(run, begin, end, thread) on the pool for ranges of rows that cover
// the matrix, run by run.
template <class Fn>
void each_run(Context& context, const ScheduledMatrix& matrix, const Fn& fn) {
  for (uint32_t i = 0; i < matrix.tile_count;) {
    if (!context.failure.ok()) return;
    if (context.interrupted->load(std::memory_order_relaxed)) {
      context.fail(cancelled("interrupted"));
      return;
    }
    TileRun run(context, matrix);
    const Status acquired = run.acquire(matrix.first_tile + i);
    const double start = now_seconds();
    if (acquired.ok()) {
      context.pool->parallel_for(run.rows(),
                                 kernels::kRowGrain,
                                 [&](size_t begin, size_t end, int thread) {
                                   fn(run, begin, end, thread);
                                 });
    }
    context.compute_seconds += now_seconds() - start;
    run.release();
    if (!acquired.ok()) return context.fail(acquired);
    i += run.count();
  }
}

const float* bias_of(const Linear& linear) {
  return linear.bias ? linear.bias->values.data() : nullptr;
}

// y[t] = W x[t] + b, and then(r, n, t, y[t] + r, thread) for rows [r, r + n) of
// W, on the thread that made them.
template <class Then>
void multiply_then(Context& context,
                   const Linear& linear,
                   Input& x,
                   float* y,
                   const Then& then) {
  FLASH_CHECK(linear.row_order == RowOrder::kPlain);
  const ScheduledMatrix& matrix = context.schedule->matrices()[linear.matrix];
  const kernels::MatmulInput& input = x.of(matrix.format);
  const float* bias = bias_of(linear);
  each_run(context,
           matrix,
           [&](const TileRun& run, size_t begin, size_t end, int thread) {
             std::byte* scratch = context.thread_scratch(thread);
             run.each_part(begin, end, [&](const TileRun::Rows& rows) {
               const size_t first = rows.row_begin;
               const size_t n = rows.end - rows.begin;
               kernels::matmul(rows.weights,
                               rows.begin,
                               rows.end,
                               input,
                               y + (first - rows.begin),
                               linear.rows,
                               scratch);
               for (size_t t = 0; t < input.tokens; ++t) {
                 float* out = y + t * linear.rows + first;
                 if (bias != nullptr) kernels::add(out, bias + first, n, out);
                 then(first, n, t, out, thread);
               }
             });
           });
}

}  // namespace

void linear(Context& context, const Linear& linear, Input& x, float* y) {
  const size_t tokens = x.rows();
  if (linear.row_order == RowOrder::kPlain) {
    return multiply_then(
        context, linear, x, y, [](size_t, size_t, size_t, float*, int) {});
  }
  Linear as_it_lies{.matrix = linear.matrix,
                    .rows = linear.rows,
                    .cols = linear.cols,
                    .bias = std::nullopt};
  multiply_then(
      context, as_it_lies, x, y, [](size_t, size_t, size_t, float*, int) {});
  unpermute(linear, tokens, y);
  if (!linear.bias) return;
  for (size_t t = 0; t < tokens; ++t) {
    float* row = y + t * linear.rows;
    kernels::add(row, bias_of(linear), linear.rows, row);
  }
}

void linear(Context& context,
            const Linear& matrix,
            const float* x,
            size_t rows,
            float* y) {
  Input input(context, x, rows, matrix.cols);
  linear(context, matrix, input, y);
}

void linear_add(Context& context,
                const Linear& matrix,
                const float* x,
                size_t rows,
                float multiplier,
                const float* residual,
                float* y) {
  Input input(context, x, rows, matrix.cols);
  multiply_then(context,
                matrix,
                input,
                y,
                [&](size_t r, size_t n, size_t t, float* out, int) {
                  scale(out, n, multiplier);
                  kernels::add(residual + t * matrix.rows + r, out, n, out);
                });
}

void head(Context& context,
          const Linear& matrix,
          const float* x,
          size_t rows,
          float divisor,
          Ranking* ranking,
          float* y) {
  Input input(context, x, rows, matrix.cols);
  multiply_then(context,
                matrix,
                input,
                y,
                [&](size_t r, size_t n, size_t t, float* out, int thread) {
                  if (divisor != 1.0f) {
                    for (size_t i = 0; i < n; ++i) out[i] /= divisor;
                  }
                  if (ranking != nullptr) {
                    ranking->add(thread, t, out, n, static_cast<uint32_t>(r));
                  }
                });
}

void activate(Activation activation, const float* up, size_t n, float* gate) {
  switch (activation) {
    case Activation::kSilu:
      return kernels::silu_mul(gate, up, n, gate);
    case Activation::kGeluTanh:
      return kernels::gelu_tanh_mul(gate, up, n, gate);
    case Activation::kSwigluClipped:
      return kernels::swiglu_clipped(
          gate, up, kClippedAlpha, kClippedLimit, n, gate);
  }
}

namespace {

// Rows [first, first + rows) of x.
kernels::MatmulInput rows_of(const kernels::MatmulInput& x,
                             const ScheduledMatrix& matrix,
                             size_t first,
                             size_t rows) {
  kernels::MatmulInput some = x;
  some.x += first * x.stride;
  some.tokens = rows;
  if (x.prepared != nullptr) {
    some.prepared += kernels::prepared_bytes(matrix.format, matrix.cols, first);
  }
  return some;
}

}  // namespace

void gated(Context& context,
           const Linear& gate,
           const Linear& up,
           Activation activation,
           Input& x,
           float* out) {
  FLASH_CHECK(gate.rows == up.rows && up.row_order == RowOrder::kPlain);
  linear(context, gate, x, out);
  if (!context.failure.ok()) return;
  const ScheduledMatrix& matrix = context.schedule->matrices()[up.matrix];
  const kernels::MatmulInput& input = x.of(matrix.format);
  const float* bias = bias_of(up);
  // As many of up's rows at a time as fit, for so many rows of x.
  const size_t tokens = std::min(input.tokens, kGatedTokens);
  const size_t most =
      std::max<size_t>(1,
                       Context::kThreadFloats / tokens / kernels::kRowGrain) *
      kernels::kRowGrain;
  const auto some = [&](const TileRun::Rows& rows, int thread) {
    float* ups = context.thread_floats(thread);
    std::byte* scratch = context.thread_scratch(thread);
    for (size_t t = 0; t < input.tokens; t += tokens) {
      const auto part =
          rows_of(input, matrix, t, std::min(tokens, input.tokens - t));
      for (size_t r = rows.begin; r < rows.end; r += most) {
        const size_t n = std::min(most, rows.end - r);
        const size_t first = rows.row_begin + (r - rows.begin);
        kernels::matmul(rows.weights, r, r + n, part, ups - r, n, scratch);
        for (size_t i = 0; i < part.tokens; ++i) {
          float* u = ups + i * n;
          if (bias != nullptr) kernels::add(u, bias + first, n, u);
          activate(activation, u, n, out + (t + i) * gate.rows + first);
        }
      }
    }
  };
  each_run(context,
           matrix,
           [&](const TileRun& run, size_t begin, size_t end, int thread) {
             run.each_part(begin, end, [&](const TileRun::Rows& rows) {
               some(rows, thread);
             });
           });
}

void embed(Context& context,
           const Linear& table,
           std::span<const uint32_t> ids,
           float* out) {
  if (!context.failure.ok()) return;
  const Status status = visit_table_rows(
      context, table, ids, [&](size_t i, const kernels::WeightRows& row) {
        kernels::dequantize_row(row, 0, out + i * table.cols);
      });
  if (!status.ok()) context.fail(status.at("embedding"));
}

}  // namespace mlx_flash::nn::fast
