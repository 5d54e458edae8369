// SPDX-License-Identifier: MIT
#pragma once

// Fields of small JSON objects from outside, with their types checked. `where`
// is the place in messages ("tokenizer.json: decoder"). A field that is absent
// or null leaves the value as it is. Pure functions.

#include <nlohmann/json.hpp>
#include <string>

#include "base/status.h"

namespace mlx_flash {

Status read_field(const nlohmann::json& object,
                  const char* key,
                  const std::string& where,
                  std::string& value);
Status read_field(const nlohmann::json& object,
                  const char* key,
                  const std::string& where,
                  bool& value);
// A whole number in [0, 2^31).
Status read_field(const nlohmann::json& object,
                  const char* key,
                  const std::string& where,
                  int64_t& value);

// The same, but the field must be there.
template <typename T>
Status require_field(const nlohmann::json& object,
                     const char* key,
                     const std::string& where,
                     T& value) {
  if (!object.is_object()) return invalid_input(where + ": an object is due");
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) {
    return invalid_input(where + ": '" + key + "' is missing");
  }
  return read_field(object, key, where, value);
}

// A pattern of tokenizer.json: {"String": s} or {"Regex": s}, or s itself.
struct PatternField {
  std::string text;
  bool regex = false;
};
Status read_pattern(const nlohmann::json& object,
                    const char* key,
                    const std::string& where,
                    PatternField& pattern);

}  // namespace mlx_flash
