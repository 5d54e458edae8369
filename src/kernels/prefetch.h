// SPDX-License-Identifier: MIT
#pragma once

// Asks the second cache for what the next rows of a matrix will need: one row
// is too short a stream for the hardware to foresee much of it.

#include <cstddef>
#include <cstdint>

#include "kernels/matmul.h"

namespace mlx_flash::kernels {

class RowPrefetch {
 public:
  // `rows_ahead` rows ahead, in steps of `step_values` values of a row.
  RowPrefetch(const WeightRows& w, size_t step_values, size_t rows_ahead)
      : weight_(reinterpret_cast<uintptr_t>(w.weight)),
        row_bytes_(mlx_flash::row_bytes(w.format, w.cols).weight),
        step_bytes_(row_bytes_ * step_values / w.cols),
        ahead_(rows_ahead * row_bytes_) {}

  // The bytes of step s of row r + rows_ahead. An address past the matrix is
  // never loaded from, nor does it fault.
  __attribute__((always_inline)) void step(size_t r, size_t s) const {
    const uintptr_t p = weight_ + r * row_bytes_ + s * step_bytes_ + ahead_;
    for (size_t i = 0; i < step_bytes_; i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(p + i), 0, 2);
    }
  }

  // The same for steps of kBytes, by way of the step's own address.
  template <size_t kBytes>
  __attribute__((always_inline)) void ahead_of(const uint8_t* step) const {
    const uintptr_t p = reinterpret_cast<uintptr_t>(step) + ahead_;
    for (size_t i = 0; i < kBytes; i += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(p + i), 0, 2);
    }
  }

 private:
  uintptr_t weight_;
  size_t row_bytes_;
  size_t step_bytes_;
  size_t ahead_;
};

// Asks for a range of columns of some rows a little at a time, while others are
// multiplied: all at once, requests wait for each other and the core for them.
class SpreadPrefetch {
 public:
  // Rows [row, row + rows), columns [begin, end), in `ticks` portions.
  SpreadPrefetch(const WeightRows& w,
                 size_t row,
                 size_t rows,
                 size_t begin,
                 size_t end,
                 size_t ticks)
      : row_bytes_(mlx_flash::row_bytes(w.format, w.cols).weight),
        at_(reinterpret_cast<uintptr_t>(w.weight) + row * row_bytes_ +
            begin * row_bytes_ / w.cols),
        bytes_((end - begin) * row_bytes_ / w.cols),
        rows_(rows),
        ticks_(ticks) {}

  // The next portion. An address past the matrix is never loaded from, nor does
  // it fault.
  __attribute__((always_inline)) void tick() {
    for (due_ += rows_; due_ >= ticks_; due_ -= ticks_) {
      for (size_t i = 0; i < bytes_; i += 64) {
        __builtin_prefetch(reinterpret_cast<const void*>(at_ + i), 0, 2);
      }
      at_ += row_bytes_;
    }
  }

 private:
  size_t row_bytes_;
  uintptr_t at_;
  size_t bytes_;
  size_t rows_;
  size_t ticks_;
  size_t due_ = 0;
};

}  // namespace mlx_flash::kernels
