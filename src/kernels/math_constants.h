// SPDX-License-Identifier: MIT
#pragma once

// Constants of the formulas that kernels and their references share.

#include <cstddef>

namespace mlx_flash::kernels {

inline constexpr float kExpLowest = -104.0f;     // e^x rounds to 0 below
inline constexpr float kExpHighest = 89.0f;      // e^x overflows above
inline constexpr float kExpMagic = 12582912.0f;  // 1.5 * 2^23: rounds x + magic
inline constexpr float kExpLog2E = 0x1.715476p+0f;
// ln 2 in two parts; n * high is exact for |n| < 2^9.
inline constexpr float kExpLn2High = 0x1.62e4p-1f;
inline constexpr float kExpLn2Low = 0x1.7f7d1cp-20f;

// Taylor series of e^r, highest power first: for |r| <= ln 2 / 2 the terms left
// out weigh 5e-9.
inline constexpr size_t kExpTerms = 8;
inline constexpr float kExpPoly[kExpTerms] = {0x1.a01a02p-13f,
                                              0x1.6c16c2p-10f,
                                              0x1.111112p-7f,
                                              0x1.555556p-5f,
                                              0x1.555556p-3f,
                                              0.5f,
                                              1.0f,
                                              1.0f};

// gelu_tanh(g) = g / (1 + exp(-2 c (g + cubic g^3))), c = sqrt(2 / pi).
inline constexpr float kGeluCubic = 0.044715f;
inline constexpr float kGeluMinusTwoC = -1.5957691216057308f;

}  // namespace mlx_flash::kernels
