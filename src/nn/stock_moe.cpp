// SPDX-License-Identifier: MIT

// The experts in MLX's own operations, as mlx-lm's SwitchGLU and the blocks
// around it use them (mlx_lm/models/switch_layers.py). gather_mm and gather_qmm
// see a compact array of the experts that are needed; an index names the same
// matrix there as in the whole one, so the bits are the same.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "nn/array_util.h"
#include "nn/moe.h"
#include "nn/stock_ops.h"
#include "nn/stock_weight.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn::stock {
namespace {

// From here on mlx-lm sorts the tokens by expert.
constexpr size_t kSortFrom = 64;

struct Chosen {
  mx::array indices;  // [1, tokens, top_k]
  mx::array weights;
};

mx::array slice_last(const mx::array& a, int begin, int end, mx::Stream s) {
  mx::Shape from(a.ndim(), 0);
  mx::Shape to = a.shape();
  from.back() = begin;
  to.back() = end;
  return mx::slice(a, from, to, s);
}

mx::array partition(const MoeBlock& block,
                    const mx::array& scores,
                    mx::Stream s) {
  const int k = static_cast<int>(block.routing.top_k);
  const int n = scores.shape(-1);
  if (block.partition == Partition::kTail) {
    return slice_last(mx::argpartition(scores, -k, -1, s), n - k, n, s);
  }
  return slice_last(
      mx::argpartition(mx::negative(scores, s), k - 1, -1, s), 0, k, s);
}

// Scores of the groups that are not among the best become 0.
mx::array keep_groups(const Routing& routing,
                      const mx::array& scores,
                      mx::Stream s) {
  const int groups = static_cast<int>(routing.groups);
  mx::array grouped = mx::unflatten(scores, -1, {groups, -1}, s);
  const mx::array of_group =
      routing.group_score == GroupScore::kBest
          ? mx::max(grouped, -1, true, s)
          : mx::sum(mx::topk(grouped, 2, -1, s), -1, true, s);
  const int dropped = groups - static_cast<int>(routing.groups_kept);
  const mx::array order = mx::argpartition(of_group, dropped - 1, -2, s);
  mx::Shape from(order.ndim(), 0);
  mx::Shape to = order.shape();
  to[to.size() - 2] = dropped;
  const mx::array worst = mx::slice(order, from, to, s);
  grouped = mx::put_along_axis(
      grouped, worst, mx::array(0.0f, scores.dtype()), -2, s);
  return mx::flatten(grouped, -2, -1, s);
}

Chosen choose(const MoeBlock& block, const mx::array& gates, mx::Stream s) {
  const Routing& routing = block.routing;
  const auto scaled = [&](mx::array w) {
    if (routing.scale == 1.0f) return w;
    return mx::multiply(w, mx::array(routing.scale, w.dtype()), s);
  };
  if (routing.scoring == Scoring::kSoftmaxOfChosen) {
    const mx::array indices = partition(block, gates, s);
    mx::array w = mx::take_along_axis(gates, indices, -1, s);
    if (!block.precise_softmax) w = mx::astype(w, mx::float32, s);
    return {indices, scaled(mx::softmax(w, -1, block.precise_softmax, s))};
  }
  mx::array scores = routing.scoring == Scoring::kSoftmax
                         ? mx::softmax(gates, -1, true, s)
                         : mx::sigmoid(mx::astype(gates, mx::float32, s), s);
  mx::array choice = scores;
  if (block.correction) choice = mx::add(choice, *block.correction->array, s);
  if (routing.groups > 1) {
    if (routing.groups_kept < routing.groups) {
      choice = keep_groups(routing, choice, s);
    }
    if (!block.correction) scores = choice;
  }
  const mx::array indices = partition(block, choice, s);
  mx::array w = mx::take_along_axis(scores, indices, -1, s);
  if (routing.normalise) w = mx::divide(w, mx::sum(w, -1, true, s), s);
  return {indices, scaled(w)};
}

// Gate, up and down.
constexpr size_t kProjections = 3;

// The layer's matrix that holds a projection: its own, or that of gate and up.
const ExpertMatrix& matrix_of(const ExpertLayer& layer, size_t projection) {
  const bool both = layer.matrices.size() < kProjections;
  return layer.matrices[both && projection > 0 ? projection - 1 : projection];
}

// The needed experts of a layer as compact arrays, by projection.
struct Gathered {
  std::vector<Destination> matrices;  // [experts, rows, ...] each
  std::vector<std::optional<mx::array>> biases;
  mx::array places;  // by expert: its place
};

Gathered new_arrays(const MoeBlock& block,
                    const ExpertLayer& layer,
                    int count) {
  Gathered out{.matrices = {}, .biases = {}, .places = mx::array(0)};
  for (size_t i = 0; i < kProjections; ++i) {
    const ExpertMatrix& matrix = matrix_of(layer, i);
    const bool down = i + 1 == kProjections;
    const int rows =
        static_cast<int>(down ? block.experts.hidden : block.experts.inner);
    out.matrices.push_back(
        new_weight(matrix.format, matrix.cols, {count, rows}));
    out.biases.emplace_back();
    if (!matrix.bias.empty()) {
      std::byte* data = nullptr;
      out.biases.back() =
          new_array({count, rows}, mlx_dtype(matrix.bias_dtype), &data);
    }
  }
  return out;
}

// Where row `row` of a matrix of an expert goes.
struct Target {
  size_t projection = 0;
  size_t row = 0;
};

Target target(const MoeBlock& block, uint32_t matrix, size_t row) {
  if (!block.experts.alternating) return {matrix, row};
  if (matrix == 0) return {row % 2, row / 2};
  return {kProjections - 1, row};
}

void put_piece(const MoeBlock& block,
               const ExpertLayer& layer,
               const ExpertStream::Piece& piece,
               size_t place,
               Gathered& out) {
  for (uint32_t i = 0; i < piece.rows_count; ++i) {
    const ExpertStream::Rows& rows = piece.rows[i];
    const ExpertMatrix& matrix = layer.matrices[rows.matrix];
    const kernels::WeightRows w = expert_rows(matrix, piece.expert, rows);
    for (uint32_t r = 0; r < w.rows; ++r) {
      const Target to = target(block, rows.matrix, rows.row_begin + r);
      const bool down = to.projection + 1 == kProjections;
      const size_t row =
          place * (down ? block.experts.hidden : block.experts.inner) + to.row;
      put_row(w, r, row, out.matrices[to.projection]);
      if (rows.bias == nullptr) continue;
      const size_t bytes = dtype_bytes(matrix.bias_dtype);
      std::memcpy(out.biases[to.projection]->data<std::byte>() + row * bytes,
                  rows.bias + r * bytes,
                  bytes);
    }
  }
}

// Reads what `indices`, evaluated, name. Nothing if it failed.
std::optional<Gathered> gather(Context& context,
                               const MoeBlock& block,
                               const mx::array& indices) {
  const ExpertLayer& layer = context.expert_layers[block.experts.layer];
  ExpertRows grouped;
  grouped.group({indices.data<uint32_t>(), indices.size()},
                block.routing.top_k,
                block.experts.count);
  const size_t count = grouped.experts.size();
  Gathered out = new_arrays(block, layer, static_cast<int>(count));
  std::vector<uint32_t> places(block.experts.count, 0);
  for (uint32_t i = 0; i < count; ++i) places[grouped.experts[i]] = i;
  out.places =
      mx::array(places.data(), {static_cast<int>(places.size())}, mx::uint32);
  Status status = context.experts->begin(
      block.experts.layer, grouped.experts, grouped.counts);
  while (status.ok()) {
    if (context.interrupted->load(std::memory_order_relaxed)) {
      status = cancelled("interrupted");
      break;
    }
    const auto piece = context.experts->next();
    if (!piece.ok()) {
      status = piece.status().at(layer.name);
      break;
    }
    if (*piece == nullptr) break;
    put_piece(block, layer, **piece, places[(*piece)->expert], out);
    context.experts->release();
  }
  context.experts->end();
  if (status.ok()) return out;
  context.fail(status);
  return std::nullopt;
}

mx::array switch_linear(const ExpertLayer& layer,
                        const Gathered& experts,
                        size_t projection,
                        const mx::array& x,
                        const mx::array& indices,
                        bool sorted,
                        mx::Stream s) {
  const Weight& w = experts.matrices[projection].weight;
  const WeightFormat& format = matrix_of(layer, projection).format;
  mx::array y = x;
  if (w.scales) {
    y = mx::gather_qmm(x,
                       w.weight,
                       *w.scales,
                       w.biases,
                       std::nullopt,
                       indices,
                       true,
                       format.group_size,
                       format.bits,
                       mode_name(format),
                       std::nullopt,
                       sorted,
                       s);
  } else {
    y = mx::gather_mm(
        x, mx::swapaxes(w.weight, -1, -2, s), std::nullopt, indices, sorted, s);
  }
  if (const auto& bias = experts.biases[projection]) {
    y = mx::add(y, mx::expand_dims(mx::take(*bias, indices, 0, s), -2, s), s);
  }
  return y;
}

// SwitchGLU: [1, tokens, top_k, hidden].
mx::array switch_glu(Context& context,
                     const MoeBlock& block,
                     const Gathered& experts,
                     const mx::array& input,
                     const mx::array& indices) {
  const mx::Stream s = context.mx_stream;
  const ExpertLayer& layer = context.expert_layers[block.experts.layer];
  mx::array x = mx::expand_dims(input, {-2, -3}, s);
  const bool sorted = indices.size() >= kSortFrom;
  mx::array idx = indices;
  mx::array inverse = indices;
  if (sorted) {
    const mx::array flat = mx::flatten(indices, s);
    const mx::array order = mx::argsort(flat, s);
    inverse = mx::argsort(order, s);
    const mx::array row =
        mx::floor_divide(order, mx::array(indices.shape(-1), order.dtype()), s);
    x = mx::take(mx::flatten(x, 0, -3, s), row, 0, s);
    idx = mx::take(flat, order, 0, s);
  }
  idx = mx::take(experts.places, idx, 0, s);
  const auto linear = [&](size_t projection, const mx::array& in) {
    return switch_linear(layer, experts, projection, in, idx, sorted, s);
  };
  const mx::array up = linear(1, x);
  const mx::array gate = linear(0, x);
  mx::array y = linear(2, activate(context, block.activation, gate, up));
  if (sorted) {
    y = mx::unflatten(mx::take(y, inverse, 0, s), 0, indices.shape(), s);
  }
  return mx::squeeze(y, -2, s);
}

// MLX's CPU has no gather_mm but for float32. `x`: what experts are given.
Status can_multiply(const ExpertLayer& layer,
                    const Gathered& experts,
                    const mx::array& x,
                    mx::Stream s) {
  if (s.device != mx::Device::cpu) return Status();
  for (const Destination& to : experts.matrices) {
    if (to.weight.scales) continue;
    const mx::Dtype dtype = mx::result_type(x, to.weight.weight);
    if (dtype == mx::float32) continue;
    return unsupported(fmt::format(
        "{}: MLX cannot multiply experts in {} on the CPU; use --kernels fast",
        layer.name,
        dtype == mx::bfloat16 ? "bfloat16" : "float16"));
  }
  return Status();
}

mx::array shared_expert(Context& context,
                        const SharedExpert& shared,
                        const mx::array& x) {
  const mx::Stream s = context.mx_stream;
  const mx::array gate = stock::linear(context, shared.gate, x);
  const mx::array up = stock::linear(context, shared.up, x);
  mx::array y = linear(context,
                       shared.down,
                       stock::activate(context, Activation::kSilu, gate, up));
  if (!shared.weight) return y;
  return mx::multiply(
      mx::sigmoid(stock::linear(context, *shared.weight, x), s), y, s);
}

}  // namespace

mx::array add_experts(Context& context,
                      const MoeBlock& block,
                      const mx::array& h) {
  const mx::Stream s = context.mx_stream;
  const mx::array x = stock::rms_norm(context, block.norm, h);
  const Chosen chosen =
      choose(block, stock::linear(context, block.router, x), s);
  mx::array indices = mx::astype(chosen.indices, mx::uint32, s);
  indices = mx::contiguous(indices, false, s);
  mx::eval(indices, chosen.weights);
  if (!context.failure.ok()) return h;
  const std::optional<Gathered> experts = gather(context, block, indices);
  if (!experts) return h;
  const ExpertLayer& layer = context.expert_layers[block.experts.layer];
  if (const Status can = can_multiply(layer, *experts, x, s); !can.ok()) {
    context.fail(can);
    return h;
  }
  mx::array y = switch_glu(context, block, *experts, x, indices);
  const mx::Dtype dtype = y.dtype();
  y = mx::sum(
      mx::multiply(y, mx::expand_dims(chosen.weights, -1, s), s), -2, false, s);
  if (block.cast_sum) y = mx::astype(y, dtype, s);
  y.eval();  // now, so that the weights are freed before the next come
  if (block.shared) {
    y = mx::add(y, shared_expert(context, *block.shared, x), s);
  }
  if (block.residual_scale != 1.0f) {
    y = stock::scale(context, y, block.residual_scale);
  }
  return mx::add(h, y, s);
}

}  // namespace mlx_flash::nn::stock
