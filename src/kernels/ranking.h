// SPDX-License-Identifier: MIT
#pragma once

// The best of many numbers, kept while they come piece by piece: greedy and
// top-k sampling without a pass of their own over the logits.

#include <cstddef>
#include <cstdint>

namespace mlx_flash::kernels {

// A number and its place.
struct Ranked {
  float value = 0;
  uint32_t id = 0;
};

// More are better sorted.
inline constexpr size_t kRankedMost = 64;

// Larger first; of equals the lower id: argmax() and a stable sort do so.
inline bool ranks_before(const Ranked& a, const Ranked& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// Puts `candidate`, which is no NaN, into the list best[0, count), which is in
// order, unless `most` others are better. Returns the new length.
size_t keep_ranked(Ranked candidate, size_t most, Ranked* best, size_t count);

// The same for all x[i] that are no NaN, with ids first_id + i. Which pieces x
// comes in, and in what order, changes nothing. Never allocates.
// REQUIRES: 0 < most, supported().
size_t rank(const float* x,
            size_t n,
            uint32_t first_id,
            size_t most,
            Ranked* best,
            size_t count);

}  // namespace mlx_flash::kernels
