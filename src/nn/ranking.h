// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ranking.h"

namespace mlx_flash::nn {

// The best logits of some rows, kept while a head's tiles come out: on each
// thread by itself, then joined.
class Ranking {
 public:
  // REQUIRES: most > 0.
  Ranking(size_t rows, size_t most, int threads);

  // Logits of a row with ids first_id, first_id + 1, ...; any thread of the
  // pool, by its index.
  void add(int thread, size_t row, const float* x, size_t n, uint32_t first_id);
  // The row's best in order, once all have been added. Valid until add().
  std::span<const kernels::Ranked> join(size_t row);

 private:
  size_t rows_;
  size_t most_;
  std::vector<kernels::Ranked> best_;  // [threads, rows, most]
  std::vector<size_t> counts_;         // [threads, rows]
};

}  // namespace mlx_flash::nn
