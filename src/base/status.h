// SPDX-License-Identifier: MIT
#pragma once

// Status and Result are part of the public API; inside they are base's.
#include "mlx_flash/status.h"  // IWYU pragma: export
