// SPDX-License-Identifier: MIT
#pragma once

// Weight files that are not there yet, as far as a plan needs them: files of
// the right size, all holes but for their headers.

#include <string>

#include "hub/pull.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

// A hub::Pull::HeaderWriter for .safetensors and .gguf.
Status write_sketch(const hub::Pull::HeaderReader& read,
                    const std::string& path,
                    uint64_t size);

}  // namespace mlx_flash
