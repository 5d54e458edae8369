// SPDX-License-Identifier: MIT

// Multi-head latent attention in our own arithmetic.

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "kernels/attention.h"
#include "kernels/dequantize.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "kernels/vector_ops.h"
#include "nn/fast_ops.h"
#include "nn/host_op.h"
#include "nn/mla.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn {
namespace {

constexpr size_t kTokenGrain = 4;
constexpr size_t kRowGrain = 8;
// Columns of a transposed product on one thread.
constexpr size_t kColumnGrain = 64;

struct Memory {
  float* normed = nullptr;    // [rows, hidden]; then the latents' outputs
  float* short_q = nullptr;   // [rows, q_a.rows]
  float* q = nullptr;         // [rows, heads, plain + rotated]
  float* kv = nullptr;        // [rows, latent + rotated]
  float* queries = nullptr;   // [rows, heads, latent + rotated]
  float* weights = nullptr;   // [plain, latent]: one head's keys
  float* attended = nullptr;  // [rows, heads, latent]
  float* gathered = nullptr;  // [rows, max(plain, latent)]: of one head
  float* states = nullptr;

  size_t place(const Mla& mla, size_t hidden, size_t rows, float* base);
};

size_t Memory::place(const Mla& mla, size_t hidden, size_t rows, float* base) {
  size_t at = 0;
  const auto take = [&](float*& p, size_t n) {
    if (base != nullptr) p = base + at;
    at += n;
  };
  const size_t heads = mla.heads;
  take(normed, rows * hidden);
  take(short_q, mla.q_a ? rows * mla.q_a->rows : 0);
  take(q, rows * heads * (mla.plain + mla.rotated));
  take(kv, rows * (mla.latent + mla.rotated));
  take(queries, rows * heads * (mla.latent + mla.rotated));
  take(weights, size_t{mla.plain} * mla.latent);
  take(attended, rows * heads * mla.latent);
  take(gathered, rows * std::max(mla.plain, mla.latent));
  take(states, fast::attention_state_floats(mla.attention, rows));
  return at;
}

class LatentPass {
 public:
  LatentPass(Context& context,
             const Mla& mla,
             const Step& step,
             size_t hidden,
             float* out)
      : context_(context),
        mla_(mla),
        step_(step),
        rows_(step.rows.size()),
        hidden_(hidden),
        out_(out) {
    memory_.place(
        mla,
        hidden,
        rows_,
        context.scratch_floats(latent_scratch_floats(mla, hidden, rows_)));
  }

  void run(const float* x) {
    project(x);
    if (!context_.failure.ok()) return;
    for (const KvSpan& span : step_.caches) {
      const Status room =
          span.kv->open(mla_.attention.layer, span.begin, span.end);
      if (!room.ok()) return context_.fail(room);
    }
    place_rows();
    absorb();
    if (!context_.failure.ok()) return;
    fast::attend_placed(context_,
                        mla_.attention,
                        step_,
                        memory_.queries,
                        memory_.states,
                        memory_.attended);
    if (context_.failure.ok()) emerge();
  }

 private:
  size_t q_width() const { return mla_.plain + mla_.rotated; }
  size_t key_width() const { return mla_.latent + mla_.rotated; }
  float* query(size_t t, size_t h) const {
    return memory_.queries + (t * mla_.heads + h) * key_width();
  }

  void project(const float* x);
  void place_rows();
  void absorb();
  void emerge();

  // fn(tile, rows in memory) for each tile of the matrix, in order.
  template <class Fn>
  void each_tile(const Linear& linear, const Fn& fn);
  // y(t, h) = rows of head h of W times x(t, h), for each head of the matrix,
  // which has `per_head` rows for each, the first of them `first_head`'s.
  template <class X, class Y>
  void multiply_heads(const Linear& linear,
                      size_t first_head,
                      size_t per_head,
                      const X& x,
                      const Y& y);
  void multiply_transposed(const Linear& linear, size_t head);

  Context& context_;
  const Mla& mla_;
  const Step& step_;
  size_t rows_;
  size_t hidden_;
  float* out_;
  Memory memory_;
};

void LatentPass::project(const float* x) {
  fast::norm_rows(context_, mla_.input_norm, x, rows_, hidden_, memory_.normed);
  const float* q_input = memory_.normed;
  if (mla_.q_a) {
    const size_t width = mla_.q_a->rows;
    fast::linear(context_, *mla_.q_a, memory_.normed, rows_, memory_.short_q);
    fast::norm_rows(context_,
                    *mla_.q_a_norm,
                    memory_.short_q,
                    rows_,
                    width,
                    memory_.short_q);
    q_input = memory_.short_q;
  }
  fast::linear(context_, mla_.q, q_input, rows_, memory_.q);
  fast::linear(context_, mla_.kv_a, memory_.normed, rows_, memory_.kv);
}

// Norms latents, rotates what is rotated, stores both as a key: its latent is
// the value.
void LatentPass::place_rows() {
  const Rope& rope = *mla_.attention.rope;
  const float* table = step_.rope_table(&rope);
  const auto rotate = [&](size_t t, float* x) {
    if (rope.mscale() != 1.0f) {
      for (uint32_t i = 0; i < rope.dims(); ++i) x[i] *= rope.mscale();
    }
    kernels::rope(x, table + t * rope.dims(), rope.dims(), rope.traditional());
  };
  const auto place = [&](size_t begin, size_t end, int) {
    for (size_t t = begin; t < end; ++t) {
      float* key = memory_.kv + t * key_width();
      kernels::rms_norm(key,
                        mla_.kv_a_norm.weight.values.data(),
                        mla_.kv_a_norm.eps,
                        mla_.latent,
                        key);
      rotate(t, key + mla_.latent);
      const RowPlace& row = step_.rows[t];
      const uint32_t layer = mla_.attention.layer;
      kernels::store_kv(key,
                        key_width(),
                        context_.kv_dtype,
                        row.kv->key_row(layer, row.position));
      for (size_t h = 0; h < mla_.heads; ++h) {
        const float* from =
            memory_.q + (t * mla_.heads + h) * q_width() + mla_.plain;
        float* to = query(t, h) + mla_.latent;
        std::memcpy(to, from, mla_.rotated * sizeof(float));
        rotate(t, to);
      }
    }
  };
  context_.pool->parallel_for(rows_, kTokenGrain, place);
}

template <class Fn>
void LatentPass::each_tile(const Linear& linear, const Fn& fn) {
  const ScheduledMatrix& matrix = context_.schedule->matrices()[linear.matrix];
  for (uint32_t i = 0; i < matrix.tile_count; ++i) {
    if (!context_.failure.ok()) return;
    if (context_.interrupted->load(std::memory_order_relaxed)) {
      return context_.fail(cancelled("interrupted"));
    }
    const TileId id = matrix.first_tile + i;
    auto view = context_.tiles->acquire(id);
    if (!view.ok()) return context_.fail(view.status().at(matrix.name));
    const Tile& tile = context_.schedule->tiles()[id];
    const double start = now_seconds();
    fn(tile, tile_rows(matrix, tile, *view));
    context_.compute_seconds += now_seconds() - start;
    context_.tiles->release(id);
  }
}

template <class X, class Y>
void LatentPass::multiply_heads(const Linear& linear,
                                size_t first_head,
                                size_t per_head,
                                const X& x,
                                const Y& y) {
  const size_t cols = linear.cols;
  each_tile(linear, [&](const Tile& tile, const kernels::WeightRows& w) {
    for (size_t row = tile.row_begin; row < tile.row_end;) {
      const size_t in_matrix = row / per_head;
      const size_t end =
          std::min<size_t>(tile.row_end, (in_matrix + 1) * per_head);
      const size_t head = first_head + in_matrix;
      for (size_t t = 0; t < rows_; ++t) {
        std::memcpy(
            memory_.gathered + t * cols, x(t, head), cols * sizeof(float));
      }
      kernels::MatmulInput input = {memory_.gathered, cols, rows_, nullptr};
      const size_t bytes = kernels::prepared_bytes(w.format, cols, rows_);
      if (bytes != 0) {
        std::byte* prepared = context_.prepared(bytes);
        kernels::prepare_fixed(
            w.format, cols, memory_.gathered, cols, 0, rows_, prepared);
        input.prepared = prepared;
      }
      const size_t stride =
          rows_ > 1 ? static_cast<size_t>(y(1, head) - y(0, head)) : 0;
      float* to = y(0, head) + (row - in_matrix * per_head);
      const size_t first = row - tile.row_begin;
      context_.pool->parallel_for(
          end - row, kRowGrain, [&](size_t from, size_t until, int thread) {
            kernels::matmul(w,
                            first + from,
                            first + until,
                            input,
                            to - first,
                            stride,
                            context_.thread_scratch(thread));
          });
      row = end;
    }
  });
}

// query(t, head) = sum over r of q(t, head)[r] * W[r], r ascending.
void LatentPass::multiply_transposed(const Linear& linear, size_t head) {
  const size_t cols = linear.cols;
  for (size_t t = 0; t < rows_; ++t) std::fill_n(query(t, head), cols, 0.0f);
  each_tile(linear, [&](const Tile& tile, const kernels::WeightRows& w) {
    context_.pool->parallel_for(
        w.rows, kRowGrain, [&](size_t begin, size_t end, int) {
          for (size_t r = begin; r < end; ++r) {
            kernels::dequantize_row(w, r, memory_.weights + r * cols);
          }
        });
    const size_t chunks = (cols + kColumnGrain - 1) / kColumnGrain;
    context_.pool->parallel_for(
        rows_ * chunks, 1, [&](size_t begin, size_t end, int) {
          for (size_t i = begin; i < end; ++i) {
            const size_t t = i / chunks;
            const size_t c = i % chunks * kColumnGrain;
            const size_t n = std::min(kColumnGrain, cols - c);
            const float* q = memory_.q + (t * mla_.heads + head) * q_width() +
                             tile.row_begin;
            for (size_t r = 0; r < w.rows; ++r) {
              kernels::add_scaled(
                  memory_.weights + r * cols + c, q[r], n, query(t, head) + c);
            }
          }
        });
  });
}

void LatentPass::absorb() {
  if (!mla_.embed_q) {
    for (size_t h = 0; h < mla_.heads; ++h) {
      multiply_transposed(mla_.head_keys[h], h);
    }
    return;
  }
  multiply_heads(
      *mla_.embed_q,
      0,
      mla_.latent,
      [&](size_t t, size_t h) {
        return memory_.q + (t * mla_.heads + h) * q_width();
      },
      [&](size_t t, size_t h) { return query(t, h); });
}

void LatentPass::emerge() {
  const auto x = [&](size_t t, size_t h) {
    return memory_.attended + (t * mla_.heads + h) * mla_.latent;
  };
  const auto y = [&](size_t t, size_t h) {
    return out_ + (t * mla_.heads + h) * mla_.value;
  };
  if (mla_.unembed_out) {
    return multiply_heads(*mla_.unembed_out, 0, mla_.value, x, y);
  }
  for (size_t h = 0; h < mla_.heads; ++h) {
    multiply_heads(mla_.head_values[h], h, mla_.value, x, y);
  }
}

}  // namespace

size_t latent_scratch_floats(const Mla& mla, size_t hidden, size_t rows) {
  return Memory().place(mla, hidden, rows, nullptr);
}

mx::array latent_attention(Context& context,
                           const Mla& mla,
                           const Step& step,
                           const mx::array& x) {
  if (context.stock) return stock::latent_attention(context, mla, step, x);
  return host_op(
      "LatentAttention",
      {x},
      {{x.shape(0), static_cast<int>(mla.heads * mla.value)}},
      [&context, &mla, &step](std::span<const float* const> in,
                              std::span<float* const> out) {
        fast::latent_attention(context, mla, step, in[0], out[0]);
      },
      context.mx_stream)[0];
}

namespace fast {

void latent_attention(Context& context,
                      const Mla& mla,
                      const Step& step,
                      const float* x,
                      float* out) {
  if (!context.failure.ok()) return;
  const size_t hidden = mla.input_norm.weight.values.size();
  LatentPass(context, mla, step, hidden, out).run(x);
}

}  // namespace fast
}  // namespace mlx_flash::nn
