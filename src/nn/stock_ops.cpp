// SPDX-License-Identifier: MIT
#include "nn/stock_ops.h"

#include <cstring>

#include "base/check.h"
#include "kernels/dequantize.h"
#include "nn/array_util.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn::stock {
namespace {

// A matrix as MLX wants it.
struct Weight {
  mx::array weight;
  std::optional<mx::array> scales;
  std::optional<mx::array> biases;
};

const char* mode_name(WeightKind kind) {
  switch (kind) {
    case WeightKind::kMxfp4:
      return "mxfp4";
    case WeightKind::kMxfp8:
      return "mxfp8";
    case WeightKind::kNvfp4:
      return "nvfp4";
    default:
      return "affine";
  }
}

mx::Dtype weight_dtype(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kF16:
      return mx::float16;
    case WeightKind::kBF16:
      return mx::bfloat16;
    default:
      return format.split() ? mx::uint32 : mx::float32;
  }
}

mx::Dtype scale_dtype(const WeightFormat& format) {
  return format.kind == WeightKind::kAffine ? mlx_dtype(format.scale_dtype)
                                            : mx::uint8;
}

// Arrays for `rows` rows of a matrix, and where each part's bytes go.
struct Destination {
  Weight weight;
  std::byte* data[kTilePartsMax] = {};
};

// GGUF's block formats are dequantised; all others keep their bytes.
bool is_block(const WeightFormat& format) {
  return format.kind > WeightKind::kNvfp4;
}

Destination new_weight(const ScheduledMatrix& matrix, int rows) {
  const WeightFormat& format = matrix.format;
  const RowBytes row = row_bytes(format, matrix.cols);
  const mx::Dtype dtype = weight_dtype(format);
  const int cols = is_block(format)
                       ? static_cast<int>(matrix.cols)
                       : static_cast<int>(row.weight / mx::size_of(dtype));
  std::byte* data[kTilePartsMax] = {};
  Destination out{.weight = {.weight = new_array({rows, cols}, dtype, &data[0]),
                             .scales = std::nullopt,
                             .biases = std::nullopt}};
  if (row.scales != 0) {
    const mx::Dtype type = scale_dtype(format);
    const mx::Shape shape{rows,
                          static_cast<int>(row.scales / mx::size_of(type))};
    out.weight.scales = new_array(shape, type, &data[1]);
    if (row.biases != 0) {
      out.weight.biases = new_array(shape, type, &data[2]);
    }
  }
  std::memcpy(out.data, data, sizeof(data));
  return out;
}

// Puts row `r` of `rows` at row `to` of the arrays.
void put_row(const ScheduledMatrix& matrix,
             const kernels::WeightRows& rows,
             size_t r,
             size_t to,
             const Destination& out) {
  if (is_block(matrix.format)) {
    kernels::dequantize_row(
        rows, r, reinterpret_cast<float*>(out.data[0]) + to * matrix.cols);
    return;
  }
  const std::byte* parts[kTilePartsMax] = {
      rows.weight, rows.scales, rows.biases};
  for (uint32_t p = 0; p < matrix.part_count; ++p) {
    const size_t bytes = matrix.parts[p].row_bytes;
    std::memcpy(out.data[p] + to * bytes, parts[p] + r * bytes, bytes);
  }
}

// Copies the whole matrix out of the stream.
std::optional<Weight> materialise(Context& context, const Linear& linear) {
  const ScheduledMatrix& matrix = context.schedule->matrices()[linear.matrix];
  Destination out = new_weight(matrix, static_cast<int>(linear.rows));
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
      put_row(matrix, rows, r - tile.row_begin, to, out);
    }
    context.tiles->release(id);
  }
  return std::move(out.weight);
}

mx::array failed(const mx::array& x, int width) {
  mx::Shape shape = x.shape();
  shape.back() = width;
  return mx::zeros(shape, x.dtype());
}

}  // namespace

mx::array embed(Context& context, const Linear& table, const Step& step) {
  const ScheduledMatrix& matrix = context.schedule->matrices()[table.matrix];
  const int rows = static_cast<int>(step.tokens.size());
  Destination out = new_weight(matrix, rows);
  const Status status = visit_table_rows(
      context, table, step.tokens, [&](size_t i, const auto& row) {
        put_row(matrix, row, 0, i, out);
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
                       mode_name(matrix.format.kind),
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
                             mode_name(format.kind),
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

mx::array activate(Context& context,
                   Activation activation,
                   const mx::array& gate,
                   const mx::array& up) {
  const mx::Stream s = context.mx_stream;
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
        mx::array h = mx::reshape(x, {1, n, static_cast<int>(heads), -1}, s);
        if (norm) h = stock::rms_norm(context, *norm, h);
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
  mx::array out = mx::fast::scaled_dot_product_attention(q,
                                                         keys,
                                                         values,
                                                         config.scale,
                                                         mask.mode,
                                                         mask.array,
                                                         std::nullopt,
                                                         false,
                                                         s);
  out = mx::reshape(mx::transpose(out, {0, 2, 1, 3}, s), {1, n, -1}, s);
  return out;
}

}  // namespace mlx_flash::nn::stock
