// SPDX-License-Identifier: MIT
#pragma once

// What the instructions of a kernel can do at most: the same mix of them in a
// loop that touches nothing but registers. One thread, on the instruction set
// in use.

#include <cstddef>

#include "base/weight_format.h"

namespace mlx_flash::kernels {

// float32 multiply-adds alone: operations (two for each) in one second.
double peak_fma_flops();

// What `format` does for many rows of x: for each group the products in
// integers, in pairs where the kernel takes them so, and, once, their
// conversion and scaling; fma alone where weights are floats.
double peak_mix_flops(const WeightFormat& format);

}  // namespace mlx_flash::kernels
