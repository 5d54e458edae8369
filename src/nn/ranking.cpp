// SPDX-License-Identifier: MIT
#include "nn/ranking.h"

namespace mlx_flash::nn {

Ranking::Ranking(size_t rows, size_t most, int threads)
    : rows_(rows),
      most_(most),
      best_(static_cast<size_t>(threads) * rows * most),
      counts_(static_cast<size_t>(threads) * rows) {}

void Ranking::add(
    int thread, size_t row, const float* x, size_t n, uint32_t first_id) {
  const size_t list = static_cast<size_t>(thread) * rows_ + row;
  counts_[list] =
      kernels::rank(x, n, first_id, most_, &best_[list * most_], counts_[list]);
}

std::span<const kernels::Ranked> Ranking::join(size_t row) {
  for (size_t list = row + rows_; list < counts_.size(); list += rows_) {
    for (size_t i = 0; i < counts_[list]; ++i) {
      counts_[row] = kernels::keep_ranked(
          best_[list * most_ + i], most_, &best_[row * most_], counts_[row]);
    }
    counts_[list] = 0;
  }
  return {&best_[row * most_], counts_[row]};
}

}  // namespace mlx_flash::nn
