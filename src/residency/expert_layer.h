// SPDX-License-Identifier: MIT
#pragma once

// What a model declares about its experts: for each layer the matrices of each
// expert and where they lie. Pure values.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/weight_format.h"
#include "residency/schedule.h"

namespace mlx_flash {

// A vector of an expert beside a matrix (gpt_oss: the bias of each projection).
inline constexpr size_t kExpertPartsMax = kTilePartsMax + 1;
inline constexpr size_t kExpertMatricesMax = 3;  // gate, up, down

// One matrix of all experts of a layer. `parts[e]` are expert e's: weights,
// scales, biases of the quantisation, as in ScheduledMatrix; offsets are of the
// expert's first row.
struct ExpertMatrix {
  WeightFormat format;
  uint64_t rows = 0;
  uint64_t cols = 0;
  uint32_t part_count = 0;
  std::vector<std::array<MatrixPart, kTilePartsMax>> parts;
  // An added vector of `rows` values; row_bytes is one value's. Empty: none.
  std::vector<MatrixPart> bias;
  DType bias_dtype = DType::kF32;
};

// The experts of one layer, by the number of the round that begin() takes.
struct ExpertLayer {
  std::string name;      // "model.layers.3.mlp", for messages
  uint32_t experts = 0;  // of the layer
  uint32_t active = 0;   // that one token uses
  uint32_t after = 0;    // MatrixId of the last matrix used before it
  std::vector<ExpertMatrix> matrices;  // in the order of use
};

}  // namespace mlx_flash
