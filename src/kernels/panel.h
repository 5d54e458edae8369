// SPDX-License-Identifier: MIT
#pragma once

// A block of rows of W, unpacked for the kernel for many rows of x: sizes and
// memory (fixed_gemm.cpp).

#include <cstddef>
#include <cstdint>

#include "kernels/fixed_point.h"

namespace mlx_flash::kernels {

constexpr size_t kPanelCodes = 1024;  // of each row in a panel
constexpr size_t kPanelGroups = 64;   // at most: groups of 16
constexpr size_t kPanelRowsMax = 32;  // rows of W in a panel
constexpr size_t kPanelTokens = 256;  // rows of x that share a panel

// Codes of a row that are unpacked at once: for few rows of x so many that
// codes, sums and x stay within the first cache; for many, sums would come and
// go too often.
constexpr size_t panel_codes(size_t tokens) {
  return tokens <= 16 ? kPanelCodes / 4 : kPanelCodes;
}

// "Plane": one 32-bit value of each row of the panel, side by side.
struct FixedScratch {
  // Row by row, before the rows become lanes.
  alignas(64) int16_t row_codes[16 * kPanelCodes];
  alignas(64) float row_scales[16 * kPanelGroups];
  alignas(64) float row_offsets[16 * kPanelGroups];
  // [pair of codes][row], [group][row].
  alignas(64) int16_t codes[kPanelRowsMax * kPanelCodes];
  alignas(64) float scales[kPanelRowsMax * kPanelGroups];
  alignas(64) float offsets[kPanelRowsMax * kPanelGroups];
  alignas(64) int32_t pairs[kPanelRowsMax * kPanelGroups];  // sums of w0 w1
  // [token][group % 8][row].
  alignas(64) float acc[kPanelTokens * kChunkGroups * kPanelRowsMax];
};

}  // namespace mlx_flash::kernels
