// SPDX-License-Identifier: MIT
#pragma once

// The blocks of a model in MLX's own operations, in the order and dtype in
// which mlx-lm uses them (docs/PARITY.md), so that the results have mlx-lm's
// bits. Weights are copied from the tile stream into an array for one
// operation, which is evaluated at once, so that no weight outlives its use.
//
// The engine's thread. A failed read is recorded in the context and gives
// zeros, which the caller throws away.

#include "nn/context.h"
#include "nn/layers.h"
#include "nn/stock_weight.h"

namespace mlx_flash::nn::stock {

// Copies a whole matrix out of the stream. Nothing if that failed.
std::optional<Weight> materialise(Context& context, const Linear& linear);

mx::array embed(Context& context, const Linear& table, const Step& step);
mx::array rms_norm(Context& context, const Norm& norm, const mx::array& x);
mx::array linear(Context& context, const Linear& linear, const mx::array& x);
// x times a number that has no dtype of its own, as Python's.
mx::array scale(Context& context, const mx::array& x, float multiplier);
mx::array activate(Context& context,
                   Activation activation,
                   const mx::array& gate,
                   const mx::array& up);
mx::array attention(Context& context,
                    const AttentionConfig& config,
                    const Step& step,
                    const std::vector<mx::array>& qkv);

}  // namespace mlx_flash::nn::stock
