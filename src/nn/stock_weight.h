// SPDX-License-Identifier: MIT
#pragma once

// Weights as arrays that MLX's own operations take: copies of what the weight
// streams hand out, in the file's format. GGUF's blocks, which MLX does not
// know, become float32, and fp8 becomes bfloat16, as mlx-lm makes it when it
// loads.

#include <optional>

#include "kernels/matmul.h"
#include "nn/mlx.h"
#include "residency/schedule.h"

namespace mlx_flash::nn::stock {

struct Weight {
  mx::array weight;
  std::optional<mx::array> scales;
  std::optional<mx::array> biases;
};

// Arrays of undefined content, and where each part's bytes go.
struct Destination {
  Weight weight;
  std::byte* data[kTilePartsMax] = {};
};

// Of the shape [...lead, rows, what a row of `cols` values takes].
Destination new_weight(const WeightFormat& format,
                       size_t cols,
                       mx::Shape lead_and_rows);

// Puts row `r` of `rows` at row `to`, counted over all leading dimensions.
void put_row(const kernels::WeightRows& rows,
             size_t r,
             size_t to,
             const Destination& out);

// mlx-lm's name of the quantisation.
const char* mode_name(const WeightFormat& format);

}  // namespace mlx_flash::nn::stock
