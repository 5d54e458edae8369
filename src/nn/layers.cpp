// SPDX-License-Identifier: MIT
#include "nn/layers.h"

#include <algorithm>

#include "base/check.h"
#include "nn/fast_ops.h"
#include "nn/host_op.h"
#include "nn/stock_ops.h"

namespace mlx_flash::nn {
namespace {

using Inputs = std::span<const float* const>;
using Outputs = std::span<float* const>;

int rows_of(const mx::array& x) {
  return x.shape(0);
}

mx::array single(std::vector<mx::array> arrays) {
  return std::move(arrays.front());
}

void scale(float* x, size_t n, float multiplier) {
  if (multiplier == 1.0f) return;
  for (size_t i = 0; i < n; ++i) x[i] *= multiplier;
}

mx::array stock_add(Context& context,
                    const Linear& matrix,
                    const mx::array& x,
                    const mx::array& residual,
                    float multiplier) {
  mx::array y = stock::linear(context, matrix, x);
  if (multiplier != 1.0f) y = stock::scale(context, y, multiplier);
  return mx::add(residual, y, context.mx_stream);
}

}  // namespace

const float* Step::rope_table(const Rope* rope) const {
  for (const RopeTable& table : rope_tables) {
    if (table.rope == rope) return table.values.data();
  }
  FLASH_CHECK(!"the rope was prepared");
  return nullptr;
}

void prepare_rope(const Context& context, const Rope& rope, Step& step) {
  if (context.stock) return;
  std::vector<uint32_t> positions;
  positions.reserve(step.rows.size());
  for (const RowPlace& row : step.rows) positions.push_back(row.position);
  Step::RopeTable table{&rope,
                        std::vector<float>(positions.size() * rope.dims())};
  rope.fill(positions, table.values.data());
  step.rope_tables.push_back(std::move(table));
}

mx::array embed(Context& context,
                const Linear& table,
                const Step& step,
                float multiplier) {
  if (context.stock) {
    const mx::array h = stock::embed(context, table, step);
    return multiplier == 1.0f ? h : stock::scale(context, h, multiplier);
  }
  const mx::Shape shape{static_cast<int>(step.tokens.size()),
                        static_cast<int>(table.cols)};
  return single(host_op(
      "Embed",
      {},
      {shape},
      [&context, &table, &step, multiplier](Inputs, Outputs out) {
        fast::embed(context, table, step.tokens, out[0]);
        scale(out[0], step.tokens.size() * table.cols, multiplier);
      },
      context.mx_stream));
}

mx::array rms_norm(Context& context, const Norm& norm, const mx::array& x) {
  if (context.stock) return stock::rms_norm(context, norm, x);
  const auto rows = static_cast<size_t>(rows_of(x));
  const auto width = static_cast<size_t>(x.shape(1));
  return single(host_op(
      "RmsNorm",
      {x},
      {x.shape()},
      [&context, &norm, rows, width](Inputs in, Outputs out) {
        fast::norm_rows(context, norm, in[0], rows, width, out[0]);
      },
      context.mx_stream));
}

mx::array head(Context& context,
               const Norm& norm,
               const Linear& matrix,
               float divisor,
               const mx::array& x,
               Ranking* ranking) {
  if (context.stock) {
    mx::array y =
        stock::linear(context, matrix, stock::rms_norm(context, norm, x));
    if (divisor == 1.0f) return y;
    return mx::divide(y, mx::array(divisor, y.dtype()), context.mx_stream);
  }
  const auto rows = static_cast<size_t>(rows_of(x));
  return single(host_op(
      "Head",
      {x},
      {{rows_of(x), static_cast<int>(matrix.rows)}},
      [&context, &norm, &matrix, divisor, rows, ranking](Inputs in,
                                                         Outputs out) {
        const size_t width = matrix.cols;
        float* normed = context.scratch_floats(rows * width);
        fast::norm_rows(context, norm, in[0], rows, width, normed);
        fast::head(context, matrix, normed, rows, divisor, ranking, out[0]);
      },
      context.mx_stream));
}

mx::array linear_add(Context& context,
                     const Linear& matrix,
                     const mx::array& x,
                     const mx::array& residual,
                     float multiplier) {
  if (context.stock) return stock_add(context, matrix, x, residual, multiplier);
  const auto rows = static_cast<size_t>(rows_of(x));
  return single(host_op(
      "LinearAdd",
      {x, residual},
      {residual.shape()},
      [&context, &matrix, rows, multiplier](Inputs in, Outputs out) {
        fast::linear_add(
            context, matrix, in[0], rows, multiplier, in[1], out[0]);
      },
      context.mx_stream));
}

size_t mlp_scratch_floats(size_t hidden, size_t inner, size_t rows) {
  return rows * (hidden + inner);
}

mx::array add_mlp(Context& context,
                  const Mlp& mlp,
                  const mx::array& x,
                  float multiplier) {
  if (context.stock) {
    const mx::array input = stock::rms_norm(context, mlp.norm, x);
    const mx::array g = stock::linear(context, mlp.gate, input);
    const mx::array u = stock::linear(context, mlp.up, input);
    return stock_add(context,
                     mlp.down,
                     stock::activate(context, mlp.activation, g, u),
                     x,
                     multiplier);
  }
  const auto rows = static_cast<size_t>(rows_of(x));
  return single(host_op(
      "Mlp",
      {x},
      {x.shape()},
      [&context, &mlp, rows, multiplier](Inputs in, Outputs out) {
        const size_t width = mlp.gate.cols;
        float* normed = context.scratch_floats(
            mlp_scratch_floats(width, mlp.gate.rows, rows));
        float* inner = normed + rows * width;
        fast::norm_rows(context, mlp.norm, in[0], rows, width, normed);
        fast::Input input(context, normed, rows, width);
        fast::gated(context, mlp.gate, mlp.up, mlp.activation, input, inner);
        fast::linear_add(
            context, mlp.down, inner, rows, multiplier, in[0], out[0]);
      },
      context.mx_stream));
}

namespace {

// Where everything lies in the context's scratch while rows attend.
struct AttentionMemory {
  float* normed = nullptr;  // [rows, hidden]; then what was attended to
  float* q = nullptr;       // [rows, heads, head_dim]
  float* k = nullptr;       // [rows, kv_heads, head_dim]
  float* v = nullptr;
  float* states = nullptr;

  size_t place(const AttentionConfig& config,
               size_t hidden,
               size_t rows,
               float* base) {
    size_t at = 0;
    const auto take = [&](float*& p, size_t n) {
      if (base != nullptr) p = base + at;
      at += n;
    };
    const size_t q_width = size_t{config.heads} * config.head_dim;
    const size_t kv_width = size_t{config.kv_heads} * config.head_dim;
    take(normed, rows * std::max(hidden, q_width));
    take(q, rows * q_width);
    take(k, rows * kv_width);
    take(v, rows * kv_width);
    take(states, fast::attention_state_floats(config, rows));
    return at;
  }
};

void run_attention(Context& context,
                   const AttentionBlock& block,
                   const Step& step,
                   float multiplier,
                   const float* x,
                   float* out) {
  const size_t rows = step.rows.size();
  const size_t width = block.q.cols;
  AttentionMemory at;
  at.place(block.config,
           width,
           rows,
           context.scratch_floats(
               attention_scratch_floats(block.config, width, rows)));
  fast::norm_rows(context, block.norm, x, rows, width, at.normed);
  fast::Input input(context, at.normed, rows, width);
  fast::linear(context, block.q, input, at.q);
  fast::linear(context, block.k, input, at.k);
  fast::linear(context, block.v, input, at.v);
  fast::attention(
      context, block.config, step, at.q, at.k, at.v, at.states, at.normed);
  fast::linear_add(context, block.o, at.normed, rows, multiplier, x, out);
}

}  // namespace

size_t attention_scratch_floats(const AttentionConfig& config,
                                size_t hidden,
                                size_t rows) {
  return AttentionMemory().place(config, hidden, rows, nullptr);
}

mx::array add_attention(Context& context,
                        const AttentionBlock& block,
                        const Step& step,
                        const mx::array& x,
                        float multiplier) {
  if (context.stock) {
    const mx::array input = stock::rms_norm(context, block.norm, x);
    std::vector<mx::array> qkv;
    for (const Linear* matrix : {&block.q, &block.k, &block.v}) {
      qkv.push_back(stock::linear(context, *matrix, input));
    }
    return stock_add(context,
                     block.o,
                     stock::attention(context, block.config, step, qkv),
                     x,
                     multiplier);
  }
  return single(host_op(
      "Attention",
      {x},
      {x.shape()},
      [&context, &block, &step, multiplier](Inputs in, Outputs out) {
        run_attention(context, block, step, multiplier, in[0], out[0]);
      },
      context.mx_stream));
}

mx::array take_rows(Context& context,
                    const mx::array& x,
                    std::span<const uint32_t> indices) {
  const mx::array list(
      indices.data(), mx::Shape{static_cast<int>(indices.size())}, mx::uint32);
  return mx::take(x, list, context.stock ? 1 : 0, context.mx_stream);
}

}  // namespace mlx_flash::nn
