// SPDX-License-Identifier: MIT
#pragma once

// Reads fields of config.json, with limits, and remembers the first that is
// wrong: an architecture reads all it needs and asks status() once.
//
// A field that is null counts as missing, as in Python's `or default`.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/status.h"

namespace mlx_flash::models {

class ConfigReader {
 public:
  // `config` outlives the reader.
  explicit ConfigReader(const Json& config) : config_(config) {}

  // Sizes: whole numbers in [1, 2^31). Without a default the field must exist.
  uint32_t size(const char* key);
  uint32_t size_or(const char* key, uint32_t value);
  uint32_t whole_or(const char* key, uint32_t value);  // may be 0
  double number(const char* key);
  double number_or(const char* key, double value);
  bool flag_or(const char* key, bool value);
  bool flag(const char* key);
  Json object_or_null(const char* key);  // object or null, else an error
  // A list that names each layer's attention: its window, 0 where that is
  // "full_attention".
  std::vector<uint32_t> windows(const char* key,
                                uint32_t layers,
                                uint32_t sliding_window);

  bool has(const char* key) const;
  bool given(const char* key) const {
    return config_.contains(key);
  }                                         // or null
  const Json* find(const char* key) const;  // null if missing or null

  void fail(const std::string& message);  // "config.json: " is put in front
  const Status& status() const { return status_; }

 private:
  const Json* required(const char* key, const char* what);

  const Json& config_;
  Status status_;
};

}  // namespace mlx_flash::models
