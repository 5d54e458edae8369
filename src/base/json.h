// SPDX-License-Identifier: MIT
#pragma once

// JSON documents of moderate size (config.json, an index, messages). Never for
// tokenizer.json, which reaches 136 MB: text/ reads that one as a stream.

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace mlx_flash {

// Keeps the order of keys, as Python does.
using Json = nlohmann::ordered_json;

// Refuses malformed text (with line and column), nesting deeper than 256 and
// numbers that are not finite in double. Accepts NaN and Infinity nowhere.
Result<Json> parse_json(std::string_view text);

// Reads a whole JSON file of at most `bytes_max` bytes.
Result<Json> read_json_file(const std::string& path, size_t bytes_max);

}  // namespace mlx_flash
