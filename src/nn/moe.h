// SPDX-License-Identifier: MIT
#pragma once

// A block of experts in the place of a layer's MLP (docs/MOE.md). As in
// nn/layers.h there are two ways of the same mathematics: `fast`, one node of
// the graph, in which each needed expert is taken from the stream once for all
// rows of the forward and in whatever order it arrives; `stock`, mlx-lm's
// operations over a compact array of the needed experts.
//
// The engine's thread.

#include <cstdint>
#include <optional>

#include "nn/layers.h"
#include "nn/routing.h"

namespace mlx_flash::nn {

// Which end of mlx-lm's argpartition holds the chosen experts: the order in
// which it leaves them is the order in which stock adds them up.
enum class Partition {
  kHeadOfNegated,  // argpartition(-scores, k - 1)[:k]
  kTail,           // argpartition(scores, -k)[-k:]
};

// An MLP that every row uses beside its experts.
struct SharedExpert {
  Linear gate, up, down;
  std::optional<Linear> weight;  // one output: its sigmoid multiplies
};

struct MoeBlock {
  Norm norm;      // of the residual stream, in front
  Linear router;  // one output for each expert
  Routing routing;
  std::optional<SmallTensor> correction;  // for choosing only
  Experts experts;
  Activation activation = Activation::kSilu;
  std::optional<SharedExpert> shared;
  float residual_scale = 1;  // of what is added to the residual stream

  // Stock.
  Partition partition = Partition::kHeadOfNegated;
  // The weighted sum is cast back to the experts' dtype.
  bool cast_sum = false;
  // softmax(precise = true) of the chosen; else of their float32 values.
  bool precise_softmax = true;
};

// x + experts(norm(x)). `next`: the block that comes after this one, whose
// experts may be read ahead; null: none. Both outlive the evaluation.
mx::array add_experts(Context& context,
                      const MoeBlock& block,
                      const MoeBlock* next,
                      const mx::array& x);

// Memory of add_experts() for a forward of `rows` rows, in fast: floats of the
// context's scratch.
size_t expert_scratch_floats(const MoeBlock& block, size_t rows);

namespace fast {
void add_experts(Context& context,
                 const MoeBlock& block,
                 const MoeBlock* next,
                 const float* x,
                 size_t rows,
                 float* out);
}  // namespace fast

namespace stock {
mx::array add_experts(Context& context,
                      const MoeBlock& block,
                      const mx::array& x);
}  // namespace stock

}  // namespace mlx_flash::nn
