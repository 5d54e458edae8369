// SPDX-License-Identifier: MIT
#pragma once

// Collects what a model declares: matrices for the weight stream, in the order
// of use, and small tensors (norms, biases), which are read at once and stay.
//
// Used while a model is being built, on one thread.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/checkpoint.h"
#include "io/file.h"
#include "nn/mlx.h"
#include "residency/expert_stream.h"
#include "residency/schedule.h"

namespace mlx_flash::nn {

// Order of a matrix's rows in the file. GGUF's llama architecture stores the
// rows of q and k so that rotary pairs are neighbours: row 2i + j of a head is
// row j * head_dim / 2 + i of the published model (llama.cpp,
// convert_hf_to_gguf.py `permute`).
enum class RowOrder { kPlain, kInterleavedHeads };

// A vector of the model.
struct SmallTensor {
  std::vector<float> values;       // fast
  std::optional<mx::array> array;  // stock: in the file's dtype
};

struct Linear {
  MatrixId matrix = 0;
  uint32_t rows = 0;  // outputs
  uint32_t cols = 0;  // inputs
  RowOrder row_order = RowOrder::kPlain;
  uint32_t heads = 1;  // of kInterleavedHeads
  std::optional<SmallTensor> bias;
};

// The experts of a layer: gated MLPs, of which a token uses some.
struct Experts {
  uint32_t layer = 0;   // of the ExpertStream
  uint32_t count = 0;   // experts
  uint32_t active = 0;  // for a token
  uint32_t hidden = 0;  // inputs and outputs
  uint32_t inner = 0;   // of gate and up
  // One matrix holds gate and up, row by row in turns; else gate comes first.
  bool alternating = false;
};

// What a model says of them: everything but where they lie.
struct ExpertsShape {
  uint32_t count = 0;
  uint32_t active = 0;
  uint32_t hidden = 0;
  uint32_t inner = 0;
  bool bias = false;  // of each projection of each expert
};

class WeightStore {
 public:
  // `files`: the checkpoint's, open, in its order. Both outlive the store.
  WeightStore(const Checkpoint& checkpoint,
              std::span<const File> files,
              bool stock);

  const Checkpoint& checkpoint() const { return checkpoint_; }
  bool stock() const { return stock_; }

  // Declares "<path>.weight" (and its parts) as the next matrix of the pass;
  // reads "<path>.bias" if `bias`.
  Result<Linear> linear(const std::string& path,
                        uint64_t rows,
                        uint64_t cols,
                        bool bias,
                        RowOrder row_order = RowOrder::kPlain,
                        uint32_t heads = 1);

  // The same of a tensor [stack, rows, cols], as one matrix of all its rows.
  Result<Linear> stacked(const std::string& path,
                         uint64_t stack,
                         uint64_t rows,
                         uint64_t cols);

  // The same of rows [first, first + rows) of a matrix of `all_rows`.
  Result<Linear> rows_of(const std::string& path,
                         uint64_t all_rows,
                         uint64_t cols,
                         uint64_t first,
                         uint64_t rows);

  // Declares an embedding that is only read by the row.
  Result<Linear> row_table(const std::string& path,
                           uint64_t rows,
                           uint64_t cols);

  // Declares the experts of the block at `path` ("model.layers.3.mlp") as used
  // after the last matrix so far. They may lie stacked, one by one or, in
  // Hugging Face's own files of some architectures, gate and up in one tensor.
  Result<Experts> experts(const std::string& path, const ExpertsShape& shape);

  // Reads the vector `name` of n values.
  Result<SmallTensor> small(const std::string& name,
                            uint64_t n,
                            RowOrder row_order = RowOrder::kPlain,
                            uint32_t heads = 1);

  std::vector<ScheduledMatrix> take_matrices() { return std::move(matrices_); }
  std::vector<ExpertLayer> take_expert_layers() {
    return std::move(expert_layers_);
  }
  uint64_t small_bytes() const { return small_bytes_; }
  uint64_t weights_bytes() const { return weights_bytes_; }

 private:
  Result<Linear> declare(const std::string& path,
                         uint64_t rows,
                         uint64_t cols,
                         bool every_pass);
  // Rows [first, first + rows) of `matrix`.
  Linear add(const Matrix& matrix,
             uint64_t first,
             uint64_t rows,
             bool every_pass);
  Status add_projection(const ExpertSource& source, ExpertLayer& layer);

  const Checkpoint& checkpoint_;
  std::span<const File> files_;
  bool stock_;
  std::vector<ScheduledMatrix> matrices_;
  std::vector<ExpertLayer> expert_layers_;
  uint64_t small_bytes_ = 0;
  uint64_t weights_bytes_ = 0;
};

// Row of the published model that row `r` of the file is.
uint32_t published_row(RowOrder order,
                       uint32_t heads,
                       uint32_t rows,
                       uint32_t r);

}  // namespace mlx_flash::nn
