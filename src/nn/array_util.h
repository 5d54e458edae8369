// SPDX-License-Identifier: MIT
#pragma once

// MLX arrays from bytes of ours.

#include <cstddef>
#include <span>

#include "base/weight_format.h"
#include "nn/mlx.h"

namespace mlx_flash::nn {

mx::Dtype mlx_dtype(DType dtype);

// An evaluated array of undefined content; `*data` points at its first byte.
// Memory comes from MLX's allocator and is freed with the array.
mx::array new_array(const mx::Shape& shape, mx::Dtype dtype, std::byte** data);

// A copy of `bytes`. REQUIRES: bytes.size() fits shape and dtype.
mx::array array_from_bytes(std::span<const std::byte> bytes,
                           const mx::Shape& shape,
                           mx::Dtype dtype);

}  // namespace mlx_flash::nn
