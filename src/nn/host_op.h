// SPDX-License-Identifier: MIT
#pragma once

// A C++ function on plain float rows as one node of MLX's graph.
//
// The function runs on the stream's own thread, in order with the other
// operations of that stream, and sees pointers to its evaluated inputs and its
// outputs. It may wait (for a tile) and use a thread pool; everything it
// refers to must outlive the evaluation. It must not throw: failures are
// recorded where the caller looks after the evaluation (nn/context.h).

#include <functional>
#include <span>
#include <vector>

#include "nn/mlx.h"

namespace mlx_flash::nn {

using HostFunction = std::function<void(std::span<const float* const> inputs,
                                        std::span<float* const> outputs)>;

// One float32 array per shape. `inputs` are float32, row contiguous.
// `name` is a literal, for MLX's debug output.
std::vector<mx::array> host_op(const char* name,
                               const std::vector<mx::array>& inputs,
                               const std::vector<mx::Shape>& output_shapes,
                               HostFunction function,
                               mx::Stream stream);

}  // namespace mlx_flash::nn
