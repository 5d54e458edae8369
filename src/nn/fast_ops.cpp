// SPDX-License-Identifier: MIT
#include "nn/fast_ops.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "base/clock.h"
#include "kernels/attention.h"
#include "kernels/dequantize.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "kernels/vector_ops.h"
#include "kv/kv_walk.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn::fast {
namespace {

// Pinned neighbours that threads multiply without meeting in between.
constexpr size_t kRunTiles = 16;

// Rows of x that are made ready in one piece.
constexpr size_t kPrepareGrain = 4;

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

// Rows of x as the kernels want them for `matrix`.
kernels::MatmulInput prepare(Context& context,
                             const ScheduledMatrix& matrix,
                             const float* x,
                             size_t rows) {
  const size_t cols = matrix.cols;
  kernels::MatmulInput input = {x, cols, rows, nullptr};
  const size_t bytes = kernels::prepared_bytes(matrix.format, cols, rows);
  if (bytes == 0) return input;
  std::byte* out = context.prepared(bytes);
  context.pool->parallel_for(
      rows, kPrepareGrain, [&](size_t begin, size_t end, int) {
        kernels::prepare_fixed(matrix.format, cols, x, cols, begin, end, out);
      });
  input.prepared = out;
  return input;
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

  // Rows [begin, end) of the run for all of x, on the calling thread.
  void multiply(size_t begin,
                size_t end,
                const kernels::MatmulInput& x,
                float* y,
                size_t y_stride,
                std::byte* scratch) const {
    for (size_t i = 0; i < count_; ++i) {
      const Part& part = parts_[i];
      const size_t from = std::max(begin, part.first);
      const size_t to = std::min(end, part.first + part.weights.rows);
      if (from >= to) continue;
      kernels::matmul(part.weights,
                      from - part.first,
                      to - part.first,
                      x,
                      y + part.row_begin,
                      y_stride,
                      scratch);
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

void linear(Context& context,
            const Linear& linear,
            const float* x,
            size_t rows,
            float* y) {
  const ScheduledMatrix& matrix = context.schedule->matrices()[linear.matrix];
  const kernels::MatmulInput input = prepare(context, matrix, x, rows);
  const size_t scratch_bytes = kernels::matmul_scratch_bytes();
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
      context.pool->parallel_for(
          run.rows(),
          kernels::kRowGrain,
          [&](size_t begin, size_t end, int thread) {
            run.multiply(begin,
                         end,
                         input,
                         y,
                         linear.rows,
                         context.thread_scratch(thread, scratch_bytes));
          });
    }
    context.compute_seconds += now_seconds() - start;
    run.release();
    if (!acquired.ok()) return context.fail(acquired);
    i += run.count();
  }
  if (linear.row_order == RowOrder::kInterleavedHeads) {
    unpermute(linear, rows, y);
  }
  if (linear.bias) {
    for (size_t t = 0; t < rows; ++t) {
      float* row = y + t * linear.rows;
      kernels::add(row, linear.bias->values.data(), linear.rows, row);
    }
  }
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

namespace {

// Norms and scales the heads of one row in place, as rope wants them.
void ready_heads(const AttentionConfig& config,
                 const std::optional<Norm>& norm,
                 uint32_t heads,
                 float* x) {
  if (norm && config.norm_whole) {
    const size_t width = size_t{heads} * config.head_dim;
    kernels::rms_norm(x, norm->weight.values.data(), norm->eps, width, x);
  }
  for (uint32_t h = 0; h < heads; ++h, x += config.head_dim) {
    if (norm && !config.norm_whole) {
      kernels::rms_norm(
          x, norm->weight.values.data(), norm->eps, config.head_dim, x);
    }
    if (config.rope == nullptr) continue;
    const Rope& rope = *config.rope;
    if (rope.mscale() != 1.0f) {
      for (uint32_t i = 0; i < rope.dims(); ++i) x[i] *= rope.mscale();
    }
  }
}

void turn_heads(const AttentionConfig& config,
                const float* cos_sin,
                uint32_t heads,
                float* x) {
  if (config.rope == nullptr) return;
  const Rope& rope = *config.rope;
  for (uint32_t h = 0; h < heads; ++h, x += config.head_dim) {
    kernels::rope(x, cos_sin, rope.dims(), rope.traditional());
  }
}

// Rotates the rows' queries and keys and stores keys and values. `queries`
// [rows, heads, head_dim] gets what attends, `keys` is scratch.
void place_rows(Context& context,
                const AttentionConfig& config,
                const Step& step,
                const float* q,
                const float* k,
                const float* v,
                float* queries,
                float* keys) {
  const size_t q_width = size_t{config.heads} * config.head_dim;
  const size_t kv_width = size_t{config.kv_heads} * config.head_dim;
  const float* table =
      config.rope != nullptr ? step.rope_table(config.rope) : nullptr;
  const size_t dims = config.rope != nullptr ? config.rope->dims() : 0;
  const DType dtype = context.kv_dtype;
  const auto place = [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      const RowPlace& row = step.rows[t];
      const float* cos_sin = table == nullptr ? nullptr : table + t * dims;
      float* qt = queries + t * q_width;
      float* kt = keys + t * kv_width;
      std::memcpy(qt, q + t * q_width, q_width * sizeof(float));
      std::memcpy(kt, k + t * kv_width, kv_width * sizeof(float));
      ready_heads(config, config.q_norm, config.heads, qt);
      ready_heads(config, config.k_norm, config.kv_heads, kt);
      if (row.kv->layout().raw_keys) {
        std::memcpy(row.kv->raw_row(config.layer, row.position),
                    kt,
                    kv_width * sizeof(float));
      }
      turn_heads(config, cos_sin, config.heads, qt);
      turn_heads(config, cos_sin, config.kv_heads, kt);
      std::byte* key = row.kv->key_row(config.layer, row.position);
      std::byte* value = row.kv->value_row(config.layer, row.position);
      kernels::store_kv(kt, kv_width, dtype, key);
      kernels::store_kv(v + t * kv_width, kv_width, dtype, value);
    }
  };
  context.pool->parallel_for(step.rows.size(), 4, place);
}

// What the rows of one layer attend with.
struct Attention {
  Context& context;
  const AttentionConfig& config;
  const Step& step;
  kernels::AttentionShape shape;
  const float* queries;  // [rows, heads, head_dim]
  kernels::AttentionState* states;
  float* out;

  size_t first_key(size_t position) const {
    const size_t seen = position + 1;
    return config.window != 0 && seen > config.window ? seen - config.window
                                                      : 0;
  }

  // fn(row, position, head_begin, head_end) on the pool for all heads of the
  // rows of `kv`; neighbouring heads of a row share their keys: one call.
  template <class Fn>
  void each_row(const KvCache* kv, const Fn& fn) const {
    const size_t heads = shape.heads;
    const auto some = [&](size_t begin, size_t end, int) {
      while (begin < end) {
        const size_t t = begin / heads;
        const size_t head = begin % heads;
        const size_t head_end = std::min(heads, head + (end - begin));
        const RowPlace& place = step.rows[t];
        if (place.kv == kv) fn(t, place.position, head, head_end);
        begin += head_end - head;
      }
    };
    context.pool->parallel_for(step.rows.size() * heads, 1, some);
  }

  const float* sinks() const {
    return config.sinks ? config.sinks->values.data() : nullptr;
  }
  const float* query(size_t t) const {
    return queries + t * shape.heads * shape.head_dim;
  }
  float* result(size_t t) const {
    return out + t * shape.heads * shape.value_dim;
  }

  // Every query sees full-precision blocks only.
  void plain(const KvCache& kv) const {
    each_row(&kv, [&](size_t t, size_t position, size_t head, size_t end) {
      kernels::attend(shape,
                      query(t),
                      kv.full(config.layer),
                      first_key(position),
                      position,
                      sinks(),
                      head,
                      end,
                      result(t));
    });
  }

  void begin(const KvCache& kv) const {
    each_row(&kv, [&](size_t t, size_t, size_t head, size_t end) {
      kernels::attend_begin(shape,
                            sinks(),
                            head,
                            end,
                            states + t * shape.heads + head,
                            result(t));
    });
  }

  // Old blocks [first, first + blocks.size()), as far as a row sees them old.
  void join_old(const KvCache& kv,
                size_t first,
                std::span<const kernels::KvBlock> blocks) const {
    each_row(&kv, [&](size_t t, size_t position, size_t head, size_t end) {
      const size_t old = kv_old_blocks(position);
      if (old <= first) return;
      kernels::attend_join(shape,
                           query(t),
                           blocks.first(std::min(blocks.size(), old - first)),
                           first,
                           first_key(position),
                           position,
                           head,
                           end,
                           states + t * shape.heads + head,
                           result(t));
    });
  }

  // The blocks a row sees in full precision, and the end.
  void join_full(const KvCache& kv) const {
    each_row(&kv, [&](size_t t, size_t position, size_t head, size_t end) {
      const size_t old = kv_old_blocks(position);
      kernels::AttentionState* state = states + t * shape.heads + head;
      kernels::attend_join(shape,
                           query(t),
                           kv.full(config.layer).subspan(old),
                           old,
                           first_key(position),
                           position,
                           head,
                           end,
                           state,
                           result(t));
      kernels::attend_end(shape, head, end, state, result(t));
    });
  }

  Status run(KvCache& kv, size_t begin_position, size_t end) const {
    const uint32_t layer = config.layer;
    FLASH_RETURN_IF_ERROR(kv.seal(layer, begin_position, end));
    if (kv.plain(layer)) {
      plain(kv);
    } else {
      begin(kv);
      const size_t old = kv_old_blocks(end - 1);
      const size_t first = first_key(begin_position) / kernels::kKvBlock;
      for (KvWalk walk(kv, layer, std::min(first, old), old);;) {
        FLASH_ASSIGN_OR_RETURN(const KvWalk::Piece piece, walk.next());
        if (piece.blocks.empty()) break;
        join_old(kv, piece.first, piece.blocks);
      }
      join_full(kv);
    }
    kv.release(layer, begin_position, end);
    return Status();
  }
};

}  // namespace

void attend_placed(Context& context,
                   const AttentionConfig& config,
                   const Step& step,
                   const float* queries,
                   float* states,
                   float* out) {
  const double start = now_seconds();
  const size_t value_dim =
      config.value_dim != 0 ? config.value_dim : config.head_dim;
  const Attention attend{
      .context = context,
      .config = config,
      .step = step,
      .shape = {.heads = config.heads,
                .kv_heads = config.kv_heads,
                .head_dim = config.head_dim,
                .value_dim = value_dim,
                .scale = config.scale,
                .kv_dtype = context.kv_dtype,
                .values_in_keys = config.values_in_keys},
      .queries = queries,
      .states = reinterpret_cast<kernels::AttentionState*>(states),
      .out = out};
  for (const KvSpan& span : step.caches) {
    const Status done = attend.run(*span.kv, span.begin, span.end);
    if (!done.ok()) return context.fail(done);
  }
  context.compute_seconds += now_seconds() - start;
}

void attention(Context& context,
               const AttentionConfig& config,
               const Step& step,
               const float* q,
               const float* k,
               const float* v,
               float* out) {
  if (!context.failure.ok()) return;
  const double start = now_seconds();
  const size_t rows = step.rows.size();
  const size_t q_width = size_t{config.heads} * config.head_dim;
  const size_t kv_width = size_t{config.kv_heads} * config.head_dim;
  for (const KvSpan& span : step.caches) {
    const Status room = span.kv->open(config.layer, span.begin, span.end);
    if (!room.ok()) return context.fail(room);
  }
  const size_t placed = rows * (q_width + kv_width);
  float* queries =
      context.scratch_floats(placed + attention_state_floats(config, rows));
  place_rows(context, config, step, q, k, v, queries, queries + rows * q_width);
  context.compute_seconds += now_seconds() - start;
  attend_placed(context, config, step, queries, queries + placed, out);
}

size_t attention_state_floats(const AttentionConfig& config, size_t rows) {
  return rows * config.heads * sizeof(kernels::AttentionState) / sizeof(float);
}

}  // namespace mlx_flash::nn::fast
