// SPDX-License-Identifier: MIT
#pragma once

// ggml's tensor types. Source: ggml.h (enum ggml_type), ggml-common.h.

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/weight_format.h"

namespace mlx_flash {

struct GgmlType {
  uint32_t id;
  std::string_view name;
  uint32_t block_values;  // 0: not known to us
  uint32_t block_bytes;
  std::optional<WeightKind> kind;  // what we can multiply by
  std::optional<DType> dtype;      // what lies there value by value
};

// Null outside the table.
const GgmlType* find_ggml_type(uint32_t id);

}  // namespace mlx_flash
