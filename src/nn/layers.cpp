// SPDX-License-Identifier: MIT
#include "nn/layers.h"

#include "base/check.h"
#include "kernels/vector_ops.h"
#include "nn/fast_ops.h"
#include "nn/host_op.h"
#include "nn/stock_ops.h"

namespace mlx_flash::nn {
namespace {

using Inputs = std::span<const float* const>;
using Outputs = std::span<float* const>;

// Fewest values worth a range of their own on a thread.
constexpr size_t kValueGrain = 2048;

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

std::vector<mx::array> linears(Context& context,
                               const Norm* norm,
                               std::span<const Linear* const> matrices,
                               const mx::array& x) {
  std::vector<mx::array> results;
  if (context.stock) {
    const mx::array input =
        norm != nullptr ? stock::rms_norm(context, *norm, x) : x;
    for (const Linear* matrix : matrices) {
      results.push_back(stock::linear(context, *matrix, input));
    }
    return results;
  }
  const auto rows = static_cast<size_t>(rows_of(x));
  std::vector<mx::Shape> shapes;
  for (const Linear* matrix : matrices) {
    shapes.push_back({rows_of(x), static_cast<int>(matrix->rows)});
  }
  return host_op(
      "Linears",
      {x},
      shapes,
      [&context,
       norm,
       rows,
       width = static_cast<size_t>(x.shape(1)),
       list = std::vector(matrices.begin(), matrices.end())](Inputs in,
                                                             Outputs out) {
        const float* input = in[0];
        if (norm != nullptr) {
          float* normed = context.scratch_floats(rows * width);
          fast::norm_rows(context, *norm, input, rows, width, normed);
          input = normed;
        }
        for (size_t i = 0; i < list.size(); ++i) {
          fast::linear(context, *list[i], input, rows, out[i]);
        }
      },
      context.mx_stream);
}

mx::array linear_add(Context& context,
                     const Linear& matrix,
                     const mx::array& x,
                     const mx::array& residual,
                     float multiplier) {
  if (context.stock) {
    mx::array y = stock::linear(context, matrix, x);
    if (multiplier != 1.0f) y = stock::scale(context, y, multiplier);
    return mx::add(residual, y, context.mx_stream);
  }
  const auto rows = static_cast<size_t>(rows_of(x));
  return single(host_op(
      "LinearAdd",
      {x, residual},
      {residual.shape()},
      [&context, &matrix, rows, multiplier](Inputs in, Outputs out) {
        fast::linear(context, matrix, in[0], rows, out[0]);
        context.pool->parallel_for(rows * matrix.rows,
                                   kValueGrain,
                                   [&](size_t begin, size_t end, int) {
                                     float* y = out[0] + begin;
                                     scale(y, end - begin, multiplier);
                                     kernels::add(
                                         in[1] + begin, y, end - begin, y);
                                   });
      },
      context.mx_stream));
}

mx::array gated(Context& context,
                const Norm& norm,
                const Linear& gate,
                const Linear& up,
                Activation activation,
                const mx::array& x) {
  if (context.stock) {
    const mx::array input = stock::rms_norm(context, norm, x);
    const mx::array g = stock::linear(context, gate, input);
    const mx::array u = stock::linear(context, up, input);
    return stock::activate(context, activation, g, u);
  }
  const auto rows = static_cast<size_t>(rows_of(x));
  return single(host_op(
      "Gated",
      {x},
      {{rows_of(x), static_cast<int>(gate.rows)}},
      [&context, &norm, &gate, &up, activation, rows](Inputs in, Outputs out) {
        const size_t width = gate.cols;
        const size_t inner = rows * gate.rows;
        float* normed = context.scratch_floats(rows * width + inner);
        float* ups = normed + rows * width;
        fast::norm_rows(context, norm, in[0], rows, width, normed);
        fast::linear(context, gate, normed, rows, out[0]);
        fast::linear(context, up, normed, rows, ups);
        const auto act = activation == Activation::kSilu
                             ? kernels::silu_mul
                             : kernels::gelu_tanh_mul;
        context.pool->parallel_for(
            inner, kValueGrain, [&](size_t begin, size_t end, int) {
              float* y = out[0] + begin;
              act(y, ups + begin, end - begin, y);
            });
      },
      context.mx_stream));
}

mx::array attention(Context& context,
                    const AttentionConfig& config,
                    const Step& step,
                    const std::vector<mx::array>& qkv) {
  if (context.stock) return stock::attention(context, config, step, qkv);
  return single(host_op(
      "Attention",
      {qkv[0], qkv[1], qkv[2]},
      {qkv[0].shape()},
      [&context, &config, &step](Inputs in, Outputs out) {
        fast::attention(context, config, step, in[0], in[1], in[2], out[0]);
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
