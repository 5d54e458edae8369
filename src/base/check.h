// SPDX-License-Identifier: MIT
#pragma once

#include "mlx_flash/check.h"  // IWYU pragma: export
