// SPDX-License-Identifier: MIT
#include "models/config_reader.h"

#include <fmt/format.h>

#include <cmath>

namespace mlx_flash::models {

const Json* ConfigReader::find(const char* key) const {
  const auto it = config_.find(key);
  return it == config_.end() || it->is_null() ? nullptr : &*it;
}

bool ConfigReader::has(const char* key) const {
  return find(key) != nullptr;
}

void ConfigReader::fail(const std::string& message) {
  if (status_.ok()) status_ = invalid_input("config.json: " + message);
}

const Json* ConfigReader::required(const char* key, const char* what) {
  const Json* value = find(key);
  if (value == nullptr) fail(fmt::format("{} is missing ({})", key, what));
  return value;
}

uint32_t ConfigReader::size(const char* key) {
  const Json* value = required(key, "a positive whole number");
  if (value == nullptr) return 1;
  const double number = value->is_number() ? value->get<double>() : -1;
  if (!(number >= 1) || number >= 2147483648.0 ||
      number != std::floor(number)) {
    fail(fmt::format(
        "{} must be a positive whole number, it is {}", key, value->dump()));
    return 1;
  }
  return static_cast<uint32_t>(number);
}

uint32_t ConfigReader::size_or(const char* key, uint32_t value) {
  return has(key) ? size(key) : value;
}

uint32_t ConfigReader::whole_or(const char* key, uint32_t value) {
  const Json* found = find(key);
  if (found == nullptr) return value;
  if (found->is_number() && found->get<double>() == 0) return 0;
  return size(key);
}

std::vector<uint32_t> ConfigReader::windows(const char* key,
                                            uint32_t layers,
                                            uint32_t sliding_window) {
  std::vector<uint32_t> out(layers, 0);
  const Json* types = find(key);
  if (types == nullptr || !types->is_array() || types->size() != layers) {
    fail(fmt::format("{} must be a list of {} names", key, layers));
    return out;
  }
  for (uint32_t i = 0; i < layers; ++i) {
    const Json& type = (*types)[i];
    const std::string name = type.is_string() ? type.get<std::string>() : "";
    if (name == "sliding_attention") {
      out[i] = sliding_window;
    } else if (name != "full_attention") {
      fail(
          fmt::format("{}[{}] is {}, it must be \"full_attention\" or "
                      "\"sliding_attention\"",
                      key,
                      i,
                      type.dump()));
    }
  }
  return out;
}

double ConfigReader::number(const char* key) {
  const Json* value = required(key, "a number");
  if (value == nullptr) return 1;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    fail(fmt::format("{} must be a number, it is {}", key, value->dump()));
    return 1;
  }
  return value->get<double>();
}

double ConfigReader::number_or(const char* key, double value) {
  return has(key) ? number(key) : value;
}

bool ConfigReader::flag(const char* key) {
  const Json* value = required(key, "true or false");
  if (value == nullptr) return false;
  if (!value->is_boolean()) {
    fail(fmt::format("{} must be true or false, it is {}", key, value->dump()));
    return false;
  }
  return value->get<bool>();
}

bool ConfigReader::flag_or(const char* key, bool value) {
  return has(key) ? flag(key) : value;
}

Json ConfigReader::object_or_null(const char* key) {
  const Json* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) {
    fail(fmt::format("{} must be an object, it is {}", key, value->dump()));
    return nullptr;
  }
  return *value;
}

}  // namespace mlx_flash::models
