// SPDX-License-Identifier: MIT
#pragma once

// Writes a float32 matrix as a NumPy .npy file (version 1.0), row by row, so
// that a whole text's logits never lie in memory. Thread-compatible.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>

#include "mlx_flash/status.h"

namespace mlx_flash {

class NpyWriter {
 public:
  static Result<std::unique_ptr<NpyWriter>> create(const std::string& path,
                                                   uint64_t rows,
                                                   uint64_t cols);

  // Removes a regular file that was not finished.
  ~NpyWriter();
  NpyWriter(const NpyWriter&) = delete;
  NpyWriter& operator=(const NpyWriter&) = delete;

  // REQUIRES: row.size() == cols
  Status write_row(std::span<const float> row);

  // Fails if the disk is full, or unless exactly `rows` rows were written.
  Status finish();

 private:
  NpyWriter(std::string path, std::FILE* file, uint64_t rows, uint64_t cols);
  Status failed() const;

  std::string path_;
  std::FILE* file_;  // owned; null once finished
  uint64_t rows_left_;
  uint64_t cols_;
};

}  // namespace mlx_flash
