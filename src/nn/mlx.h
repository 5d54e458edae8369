// SPDX-License-Identifier: MIT
#pragma once

// The door to MLX: every file that needs it includes this one.

#include <mlx/mlx.h>

namespace mlx_flash {
namespace mx = mlx::core;
}  // namespace mlx_flash
