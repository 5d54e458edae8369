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

class WeightStore {
 public:
  // `files`: the checkpoint's, open, in its order. Both outlive the store.
  WeightStore(const Checkpoint& checkpoint,
              std::span<const File> files,
              bool stock);

  const Checkpoint& checkpoint() const { return checkpoint_; }

  // Declares "<path>.weight" (and its parts) as the next matrix of the pass;
  // reads "<path>.bias" if `bias`.
  Result<Linear> linear(const std::string& path,
                        uint64_t rows,
                        uint64_t cols,
                        bool bias,
                        RowOrder row_order = RowOrder::kPlain,
                        uint32_t heads = 1);

  // Declares an embedding that is only read by the row.
  Result<Linear> row_table(const std::string& path,
                           uint64_t rows,
                           uint64_t cols);

  // Reads the vector `name` of n values.
  Result<SmallTensor> small(const std::string& name,
                            uint64_t n,
                            RowOrder row_order = RowOrder::kPlain,
                            uint32_t heads = 1);

  std::vector<ScheduledMatrix> take_matrices() { return std::move(matrices_); }
  uint64_t small_bytes() const { return small_bytes_; }
  uint64_t weights_bytes() const { return weights_bytes_; }

 private:
  Result<Linear> declare(const std::string& path,
                         uint64_t rows,
                         uint64_t cols,
                         bool every_pass);

  const Checkpoint& checkpoint_;
  std::span<const File> files_;
  bool stock_;
  std::vector<ScheduledMatrix> matrices_;
  uint64_t small_bytes_ = 0;
  uint64_t weights_bytes_ = 0;
};

// Row of the published model that row `r` of the file is.
uint32_t published_row(RowOrder order,
                       uint32_t heads,
                       uint32_t rows,
                       uint32_t r);

}  // namespace mlx_flash::nn
