// SPDX-License-Identifier: MIT

// The experts in our own arithmetic. Every output element is a dot product in
// the kernels' canonical order, and a row's experts are added up in the order
// of its own list; so neither the order in which experts arrive nor the pieces
// they come in nor what else is in the forward changes a bit.

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/clock.h"
#include "kernels/dequantize.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "kernels/vector_ops.h"
#include "nn/fast_ops.h"
#include "nn/moe.h"
#include "nn/table_rows.h"

namespace mlx_flash::nn {
namespace {

// Fewest rows of a matrix, and rows of x, worth a piece on a thread.
constexpr size_t kRowGrain = 8;
constexpr size_t kTokenGrain = 4;

// Rows of a router that are dequantised at a time.
constexpr size_t kRouterRows = 64;

// Longest forward for which the next router is asked: with many rows nearly
// every expert is needed anyway.
constexpr size_t kLookAheadRows = 8;

// Values of gate and up that are taken apart at a time.
constexpr size_t kTurnValues = 256;

// fast::activate() where gate and up come in turns, 2n values that end as n.
void activate_turns(Activation activation, float* both, size_t n) {
  float gate[kTurnValues];
  float up[kTurnValues];
  for (size_t at = 0; at < n; at += kTurnValues) {
    const size_t some = std::min(kTurnValues, n - at);
    for (size_t i = 0; i < some; ++i) {
      gate[i] = both[2 * (at + i)];
      up[i] = both[2 * (at + i) + 1];
    }
    fast::activate(activation, up, some, gate);
    std::copy_n(gate, some, both + at);  // behind what is still to be read
  }
}

// Where everything lies in the context's scratch, for a forward of `rows`.
struct Memory {
  float* normed = nullptr;    // [rows, hidden]
  float* logits = nullptr;    // [rows, experts]
  float* weights = nullptr;   // [rows, top_k]
  float* gathered = nullptr;  // [rows, hidden]: one expert's rows of normed
  float* router = nullptr;    // [kRouterRows, hidden]; a vector of biases
  float* shared = nullptr;    // [rows, hidden], if there is one
  float* share = nullptr;     // [rows]: its weight
  // By place, [rows * top_k, inner]; of Experts::alternating one array of
  // twice the width.
  float* gates = nullptr;
  float* ups = nullptr;
  float* downs = nullptr;  // by place, [rows * top_k, hidden]

  // With a null base the sizes only; returns how many floats it takes.
  size_t place(const MoeBlock& block, size_t rows, float* base);
};

size_t Memory::place(const MoeBlock& block, size_t rows, float* base) {
  const size_t hidden = block.experts.hidden;
  const size_t assigned = rows * block.routing.top_k;
  const size_t shared_inner = block.shared ? block.shared->gate.rows : 0;
  // The shared expert has come and gone before the first of the others.
  const size_t inner = assigned * block.experts.inner;
  size_t at = 0;
  const auto take = [&](float*& p, size_t n) {
    if (base != nullptr) p = base + at;
    at += n;
  };
  take(normed, rows * hidden);
  take(logits, rows * block.routing.experts);
  take(weights, assigned);
  take(gathered, rows * hidden);
  take(router, std::max(kRouterRows * hidden, 2 * size_t{block.experts.inner}));
  take(shared, block.shared ? rows * hidden : 0);
  take(share, block.shared && block.shared->weight ? rows : 0);
  take(gates, std::max(inner, rows * shared_inner));
  take(ups, inner);
  take(downs, assigned * hidden);
  return at;
}

// One forward's pass through a block.
class ExpertPass {
 public:
  ExpertPass(Context& context,
             const MoeBlock& block,
             const float* x,
             size_t rows)
      : context_(context),
        block_(block),
        layer_(context.expert_layers[block.experts.layer]),
        x_(x),
        rows_(rows) {
    memory_.place(block,
                  rows,
                  context.scratch_floats(expert_scratch_floats(block, rows)));
  }

  void run(const MoeBlock* next, float* out) {
    fast::norm_rows(context_,
                    block_.norm,
                    x_,
                    rows_,
                    block_.experts.hidden,
                    memory_.normed);
    if (!route(block_, memory_.normed, false)) return;
    grouped_.group(chosen_, block_.routing.top_k, block_.experts.count);
    const Status begun = context_.experts->begin(
        block_.experts.layer, grouped_.experts, grouped_.counts);
    if (begun.ok()) {
      if (next != nullptr) look_ahead(*next);
      shared_expert();
      take_pieces();
    } else {
      context_.fail(begun.at(layer_.name));
    }
    context_.experts->end();
    if (context_.failure.ok()) combine(out);
  }

 private:
  using Rows = ExpertStream::Rows;

  // Fills chosen_ and memory_.weights for `block`, from rows of its input.
  // With `resident_only` nothing is waited for: false if the router is not in
  // memory.
  bool route(const MoeBlock& block, const float* input, bool resident_only);
  bool router_tile(const MoeBlock& block,
                   const Tile& tile,
                   const TileStream::View& view,
                   const float* input);
  void look_ahead(const MoeBlock& next);
  void shared_expert();
  void take_pieces();
  void multiply(uint32_t index, const Rows& rows);
  void bias(const Rows& rows, size_t count, size_t width, float* y);
  void finish_inner(uint32_t index);
  kernels::MatmulInput input_of(uint32_t index, const Rows& rows);
  void combine(float* out);
  // Of memory_.gates, from row to row.
  size_t inner_stride() const {
    return size_t{block_.experts.inner} * (block_.experts.alternating ? 2 : 1);
  }

  Context& context_;
  const MoeBlock& block_;
  const ExpertLayer& layer_;
  const float* x_;
  size_t rows_;
  Memory memory_;
  RoutingScratch routing_scratch_;
  std::vector<uint32_t> chosen_;  // [rows, top_k]
  ExpertRows grouped_;
  std::vector<bool> activated_;  // by index into grouped_.experts
  // Whose inputs are prepared: index and matrix; and what they are.
  uint32_t prepared_index_ = UINT32_MAX;
  uint32_t prepared_matrix_ = UINT32_MAX;
  kernels::MatmulInput prepared_;
};

// Rows of a router are multiplied in float32, whatever they are stored as: a
// choice between two experts should not hang on the rounding of an input.
bool ExpertPass::router_tile(const MoeBlock& block,
                             const Tile& tile,
                             const TileStream::View& view,
                             const float* input) {
  const ScheduledMatrix& matrix =
      context_.schedule->matrices()[block.router.matrix];
  const kernels::WeightRows w = tile_rows(matrix, tile, view);
  const size_t hidden = matrix.cols;
  const kernels::MatmulInput x = {input, hidden, rows_, nullptr};
  const bool floats = kernels::prepared_bytes(w.format, hidden, 1) == 0;
  for (size_t r = 0; r < w.rows; r += kRouterRows) {
    const size_t some = std::min(kRouterRows, w.rows - r);
    kernels::WeightRows part = w;
    size_t first = r;
    if (!floats) {
      context_.pool->parallel_for(
          some, kRowGrain, [&](size_t begin, size_t end, int) {
            for (size_t i = begin; i < end; ++i) {
              kernels::dequantize_row(w, r + i, memory_.router + i * hidden);
            }
          });
      part = {.format = dense_format(DType::kF32),
              .rows = some,
              .cols = hidden,
              .weight = reinterpret_cast<const std::byte*>(memory_.router)};
      first = 0;
    }
    float* y = memory_.logits + tile.row_begin + (r - first);
    context_.pool->parallel_for(
        some, kRowGrain, [&](size_t begin, size_t end, int thread) {
          kernels::matmul(part,
                          first + begin,
                          first + end,
                          x,
                          y,
                          block.routing.experts,
                          context_.thread_scratch(thread));
        });
  }
  return true;
}

bool ExpertPass::route(const MoeBlock& block,
                       const float* input,
                       bool resident_only) {
  const ScheduledMatrix& matrix =
      context_.schedule->matrices()[block.router.matrix];
  for (uint32_t i = 0; i < matrix.tile_count; ++i) {
    if (!context_.failure.ok()) return false;
    const TileId id = matrix.first_tile + i;
    const Tile& tile = context_.schedule->tiles()[id];
    TileStream::View view;
    if (resident_only) {
      if (!context_.tiles->peek_pinned(id, &view)) return false;
    } else {
      auto acquired = context_.tiles->acquire(id);
      if (!acquired.ok()) {
        context_.fail(acquired.status().at(matrix.name));
        return false;
      }
      view = *acquired;
    }
    const double start = now_seconds();
    router_tile(block, tile, view, input);
    context_.compute_seconds += now_seconds() - start;
    if (!resident_only) context_.tiles->release(id);
  }
  const Routing& routing = block.routing;
  chosen_.resize(rows_ * routing.top_k);
  std::span<const float> correction;
  if (block.correction) correction = block.correction->values;
  for (size_t t = 0; t < rows_; ++t) {
    float* logits = memory_.logits + t * routing.experts;
    if (block.router.bias) {
      kernels::add(
          logits, block.router.bias->values.data(), routing.experts, logits);
    }
    choose_experts(routing,
                   logits,
                   correction,
                   routing_scratch_,
                   chosen_.data() + t * routing.top_k,
                   memory_.weights + t * routing.top_k);
  }
  return true;
}

// What the next block will want if the residual stream stays about what it is:
// its router, asked with the present one. A hint and nothing else; it uses
// memory that this pass does not need now.
void ExpertPass::look_ahead(const MoeBlock& next) {
  if (!context_.look_ahead || rows_ > kLookAheadRows) return;
  if (!context_.experts->wants_look_ahead()) return;
  const std::vector<uint32_t> kept = chosen_;
  const std::vector<float> weights(memory_.weights,
                                   memory_.weights + chosen_.size());
  fast::norm_rows(
      context_, next.norm, x_, rows_, next.experts.hidden, memory_.gathered);
  if (route(next, memory_.gathered, true)) {
    std::sort(chosen_.begin(), chosen_.end());
    chosen_.erase(std::unique(chosen_.begin(), chosen_.end()), chosen_.end());
    context_.experts->look_ahead(next.experts.layer, chosen_);
  }
  chosen_ = kept;
  std::copy(weights.begin(), weights.end(), memory_.weights);
}

// Computed while the experts' reads are on their way.
void ExpertPass::shared_expert() {
  if (!block_.shared) return;
  const SharedExpert& shared = *block_.shared;
  fast::Input input(context_, memory_.normed, rows_, shared.gate.cols);
  fast::gated(context_,
              shared.gate,
              shared.up,
              Activation::kSilu,
              input,
              memory_.gates);
  fast::linear(context_, shared.down, memory_.gates, rows_, memory_.shared);
  if (shared.weight) {
    fast::linear(
        context_, *shared.weight, memory_.normed, rows_, memory_.share);
    kernels::sigmoid(memory_.share, rows_);
  }
}

void ExpertPass::take_pieces() {
  activated_.assign(grouped_.experts.size(), false);
  while (context_.failure.ok()) {
    if (context_.interrupted->load(std::memory_order_relaxed)) {
      return context_.fail(cancelled("interrupted"));
    }
    const auto piece = context_.experts->next();
    if (!piece.ok()) return context_.fail(piece.status().at(layer_.name));
    if (*piece == nullptr) return;
    const auto found = std::lower_bound(
        grouped_.experts.begin(), grouped_.experts.end(), (*piece)->expert);
    FLASH_CHECK(found != grouped_.experts.end() && *found == (*piece)->expert);
    const auto index = static_cast<uint32_t>(found - grouped_.experts.begin());
    const double start = now_seconds();
    for (uint32_t i = 0; i < (*piece)->rows_count; ++i) {
      multiply(index, (*piece)->rows[i]);
    }
    context_.compute_seconds += now_seconds() - start;
    context_.experts->release();
  }
}

// The rows of x that the expert's matrix multiplies.
kernels::MatmulInput ExpertPass::input_of(uint32_t index, const Rows& rows) {
  const ExpertMatrix& matrix = layer_.matrices[rows.matrix];
  const bool down = rows.matrix + 1 == layer_.matrices.size();
  // Gate and up of one format share what is made for them.
  const uint32_t key =
      !down && rows.matrix == 1 && matrix.format == layer_.matrices[0].format
          ? 0
          : rows.matrix;
  if (prepared_index_ == index && prepared_matrix_ == key) return prepared_;
  prepared_index_ = index;
  prepared_matrix_ = key;
  const size_t count = grouped_.counts[index];
  const size_t offset = grouped_.offsets[index];
  const size_t cols = matrix.cols;
  const size_t stride = down ? inner_stride() : cols;
  const float* x = memory_.gates + offset * stride;
  if (!down) {
    for (size_t i = 0; i < count; ++i) {
      std::memcpy(memory_.gathered + i * cols,
                  memory_.normed + grouped_.rows[offset + i] * cols,
                  cols * sizeof(float));
    }
    x = memory_.gathered;
  }
  prepared_ = {x, stride, count, nullptr};
  const size_t bytes = kernels::prepared_bytes(matrix.format, cols, count);
  if (bytes != 0) {
    std::byte* out = context_.prepared(bytes);
    context_.pool->parallel_for(
        count, kTokenGrain, [&](size_t begin, size_t end, int) {
          kernels::prepare_fixed(
              matrix.format, cols, x, stride, begin, end, out);
        });
    prepared_.prepared = out;
  }
  return prepared_;
}

void ExpertPass::bias(const Rows& rows, size_t count, size_t width, float* y) {
  if (rows.bias == nullptr) return;
  const ExpertMatrix& matrix = layer_.matrices[rows.matrix];
  const kernels::WeightRows values = {.format = dense_format(matrix.bias_dtype),
                                      .rows = 1,
                                      .cols = rows.row_end - rows.row_begin,
                                      .weight = rows.bias};
  float* added = memory_.router;  // not in use since the choice was made
  kernels::dequantize_row(values, 0, added);
  for (size_t t = 0; t < count; ++t) {
    float* row = y + t * width + rows.row_begin;
    kernels::add(row, added, values.cols, row);
  }
}

void ExpertPass::multiply(uint32_t index, const Rows& rows) {
  const ExpertMatrix& matrix = layer_.matrices[rows.matrix];
  const bool down = rows.matrix + 1 == layer_.matrices.size();
  if (down && !activated_[index]) finish_inner(index);
  const kernels::MatmulInput x = input_of(index, rows);
  const size_t offset = grouped_.offsets[index];
  float* base = down               ? memory_.downs
                : rows.matrix == 0 ? memory_.gates
                                   : memory_.ups;
  float* y = base + offset * matrix.rows;
  const kernels::WeightRows w =
      expert_rows(matrix, grouped_.experts[index], rows);
  context_.pool->parallel_for(
      w.rows, kRowGrain, [&](size_t begin, size_t end, int thread) {
        kernels::matmul(w,
                        begin,
                        end,
                        x,
                        y + rows.row_begin,
                        matrix.rows,
                        context_.thread_scratch(thread));
      });
  bias(rows, x.tokens, matrix.rows, y);
}

// All rows of gate and up have come.
void ExpertPass::finish_inner(uint32_t index) {
  const size_t inner = block_.experts.inner;
  const size_t offset = grouped_.offsets[index] * inner_stride();
  context_.pool->parallel_for(
      grouped_.counts[index], kTokenGrain, [&](size_t begin, size_t end, int) {
        if (block_.experts.alternating) {
          for (size_t t = begin; t < end; ++t) {
            activate_turns(block_.activation,
                           memory_.gates + offset + t * inner_stride(),
                           inner);
          }
          return;
        }
        fast::activate(block_.activation,
                       memory_.ups + offset + begin * inner,
                       (end - begin) * inner,
                       memory_.gates + offset + begin * inner);
      });
  activated_[index] = true;
}

void ExpertPass::combine(float* out) {
  const size_t hidden = block_.experts.hidden;
  const size_t top_k = block_.routing.top_k;
  const double start = now_seconds();
  context_.pool->parallel_for(
      rows_, kTokenGrain, [&](size_t begin, size_t end, int) {
        for (size_t t = begin; t < end; ++t) {
          float* y = out + t * hidden;
          std::fill_n(y, hidden, 0.0f);
          for (size_t j = t * top_k; j < (t + 1) * top_k; ++j) {
            kernels::add_scaled(memory_.downs + grouped_.places[j] * hidden,
                                memory_.weights[j],
                                hidden,
                                y);
          }
          if (block_.shared) {
            const float share = block_.shared->weight ? memory_.share[t] : 1.0f;
            kernels::add_scaled(memory_.shared + t * hidden, share, hidden, y);
          }
          if (block_.residual_scale != 1.0f) {
            for (size_t i = 0; i < hidden; ++i) y[i] *= block_.residual_scale;
          }
          kernels::add(x_ + t * hidden, y, hidden, y);
        }
      });
  context_.compute_seconds += now_seconds() - start;
}

}  // namespace

size_t expert_scratch_floats(const MoeBlock& block, size_t rows) {
  return Memory().place(block, rows, nullptr);
}

namespace fast {

void add_experts(Context& context,
                 const MoeBlock& block,
                 const MoeBlock* next,
                 const float* x,
                 size_t rows,
                 float* out) {
  if (!context.failure.ok()) return;
  ExpertPass(context, block, x, rows).run(next, out);
}

}  // namespace fast
}  // namespace mlx_flash::nn
