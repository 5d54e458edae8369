// SPDX-License-Identifier: MIT
#include "text/json_fields.h"

#include <fmt/format.h>

namespace mlx_flash {
namespace {

// The value of a field, or null if there is none.
const nlohmann::json* find_field(const nlohmann::json& object,
                                 const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return nullptr;
  return &*found;
}

Status wrong_type(const std::string& where, const char* key, const char* due) {
  return invalid_input(fmt::format("{}: '{}' must be {}", where, key, due));
}

}  // namespace

Status read_field(const nlohmann::json& object,
                  const char* key,
                  const std::string& where,
                  std::string& value) {
  const nlohmann::json* field = find_field(object, key);
  if (field == nullptr) return Status();
  if (!field->is_string()) return wrong_type(where, key, "a string");
  value = field->get_ref<const std::string&>();
  return Status();
}

Status read_field(const nlohmann::json& object,
                  const char* key,
                  const std::string& where,
                  bool& value) {
  const nlohmann::json* field = find_field(object, key);
  if (field == nullptr) return Status();
  if (!field->is_boolean()) return wrong_type(where, key, "true or false");
  value = field->get<bool>();
  return Status();
}

Status read_field(const nlohmann::json& object,
                  const char* key,
                  const std::string& where,
                  int64_t& value) {
  const nlohmann::json* field = find_field(object, key);
  if (field == nullptr) return Status();
  if (!field->is_number_integer()) {
    return wrong_type(where, key, "a whole number");
  }
  const auto number = field->get<int64_t>();
  if (number < 0 || number > INT32_MAX) {
    return wrong_type(where, key, "in [0, 2147483647]");
  }
  value = number;
  return Status();
}

Status read_pattern(const nlohmann::json& object,
                    const char* key,
                    const std::string& where,
                    PatternField& pattern) {
  const nlohmann::json* field = find_field(object, key);
  if (field == nullptr) {
    return invalid_input(fmt::format("{}: '{}' is missing", where, key));
  }
  if (field->is_string()) return read_field(object, key, where, pattern.text);
  if (field->is_object() && field->size() == 1) {
    for (const char* kind : {"String", "Regex"}) {
      if (!field->contains(kind)) continue;
      pattern.regex = kind[0] == 'R';
      return require_field(*field, kind, where + "." + key, pattern.text);
    }
  }
  return wrong_type(where, key, "{\"String\": ...} or {\"Regex\": ...}");
}

}  // namespace mlx_flash
