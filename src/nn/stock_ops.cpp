// SPDX-License-Identifier: MIT
#include "nn/stock_ops.h"

#include "base/check.h"
#include "nn/stock_weight.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn::stock {
namespace {

mx::array failed(const mx::array& x, int width) {
  mx::Shape shape = x.shape();
  shape.back() = width;
  return mx::zeros(shape, x.dtype());
}

}  // namespace

std::optional<Weight> materialise(Context& context, const Linear& linear) {
  const ScheduledMatrix& matrix = context.schedule->matrices()[linear.matrix];
  Destination out =
      new_weight(matrix.format, matrix.cols, {static_cast<int>(linear.rows)});
  for (uint32_t i = 0; i < matrix.tile_count; ++i) {
    if (context.interrupted->load(std::memory_order_relaxed)) {
      context.fail(cancelled("interrupted"));
    }
    if (!context.failure.ok()) return std::nullopt;
    const TileId id = matrix.first_tile + i;
    auto view = context.tiles->acquire(id);
    if (!view.ok()) {
      context.fail(view.status().at(matrix.name));
      return std::nullopt;
    }
    const Tile& tile = context.schedule->tiles()[id];
    const kernels::WeightRows rows = tile_rows(matrix, tile, *view);
    for (uint32_t r = tile.row_begin; r < tile.row_end; ++r) {
      const uint32_t to =
          published_row(linear.row_order, linear.heads, linear.rows, r);
      put_row(rows, r - tile.row_begin, to, out);
    }
    context.tiles->release(id);
  }
  return std::move(out.weight);
}

mx::array embed(Context& context, const Linear& table, const Step& step) {
  const ScheduledMatrix& matrix = context.schedule->matrices()[table.matrix];
  const int rows = static_cast<int>(step.tokens.size());
  Destination out = new_weight(matrix.format, matrix.cols, {rows});
  const Status status = visit_table_rows(
      context, table, step.tokens, [&](size_t i, const auto& row) {
        put_row(row, 0, i, out);
      });
  if (!status.ok()) context.fail(status.at("embedding"));
  const mx::Stream s = context.mx_stream;
  const Weight& w = out.weight;
  mx::array h = w.weight;
  if (w.scales) {
    h = mx::dequantize(w.weight,
                       *w.scales,
                       w.biases,
                       matrix.format.group_size,
                       matrix.format.bits,
                       mode_name(matrix.format),
                       std::nullopt,
                       std::nullopt,
                       s);
  }
  return mx::expand_dims(h, 0, s);
}

mx::array rms_norm(Context& context, const Norm& norm, const mx::array& x) {
  return mx::fast::rms_norm(x, norm.weight.array, norm.eps, context.mx_stream);
}

mx::array linear(Context& context, const Linear& linear, const mx::array& x) {
  const std::optional<Weight> w = materialise(context, linear);
  if (!w) return failed(x, static_cast<int>(linear.rows));
  const WeightFormat& format =
      context.schedule->matrices()[linear.matrix].format;
  const mx::Stream s = context.mx_stream;
  mx::array y = x;
  if (w->scales) {
    y = mx::quantized_matmul(x,
                             w->weight,
                             *w->scales,
                             w->biases,
                             true,
                             format.group_size,
                             format.bits,
                             mode_name(format),
                             s);
    if (linear.bias) y = mx::add(y, *linear.bias->array, s);
  } else if (linear.bias) {
    y = mx::addmm(
        *linear.bias->array, x, mx::transpose(w->weight, s), 1.0f, 1.0f, s);
  } else {
    y = mx::matmul(x, mx::transpose(w->weight, s), s);
  }
  y.eval();  // now, so that the weight is freed before the next one comes
  return y;
}

mx::array scale(Context& context, const mx::array& x, float multiplier) {
  return mx::multiply(x, mx::array(multiplier, x.dtype()), context.mx_stream);
}

mx::array activate(Context& context,
                   Activation activation,
                   const mx::array& gate,
                   const mx::array& up) {
  const mx::Stream s = context.mx_stream;
  if (activation == Activation::kSwigluClipped) {
    const auto number = [&](float value, const mx::array& like) {
      return mx::array(value, like.dtype());
    };
    const mx::array g = mx::minimum(gate, number(7.0f, gate), s);
    const mx::array u = mx::clip(up, number(-7.0f, up), number(7.0f, up), s);
    return mx::multiply(
        mx::add(u, number(1.0f, u), s),
        mx::multiply(
            g, mx::sigmoid(mx::multiply(number(1.702f, g), g, s), s), s),
        s);
  }
  FLASH_CHECK(activation == Activation::kSilu);
  return mx::multiply(mx::multiply(gate, mx::sigmoid(gate, s), s), up, s);
}

mx::array attention(Context& context,
                    const AttentionConfig& config,
                    const Step& step,
                    const std::vector<mx::array>& qkv) {
  const mx::Stream s = context.mx_stream;
  const int n = static_cast<int>(step.tokens.size());
  const auto split_heads =
      [&](const mx::array& x, uint32_t heads, const std::optional<Norm>& norm) {
        const bool whole = norm && config.norm_whole;
        mx::array h = whole ? stock::rms_norm(context, *norm, x) : x;
        h = mx::reshape(h, {1, n, static_cast<int>(heads), -1}, s);
        if (norm && !whole) h = stock::rms_norm(context, *norm, h);
        return mx::transpose(h, {0, 2, 1, 3}, s);
      };
  mx::array q = split_heads(qkv[0], config.heads, config.q_norm);
  mx::array k = split_heads(qkv[1], config.kv_heads, config.k_norm);
  const mx::array v = split_heads(qkv[2], config.kv_heads, std::nullopt);

  StockLayerKv& cache = (*step.stock_kv)[config.layer];
  const StockMask mask = cache.mask(n, s);
  if (config.rope != nullptr) {
    q = config.rope->apply(q, cache.offset(), s);
    k = config.rope->apply(k, cache.offset(), s);
  }
  const auto [keys, values] = cache.update(k, v, s);
  std::optional<mx::array> sinks;
  if (config.sinks) sinks = config.sinks->array;
  mx::array out = mx::fast::scaled_dot_product_attention(
      q, keys, values, config.scale, mask.mode, mask.array, sinks, false, s);
  out = mx::reshape(mx::transpose(out, {0, 2, 1, 3}, s), {1, n, -1}, s);
  return out;
}

}  // namespace mlx_flash::nn::stock
