// SPDX-License-Identifier: MIT
#pragma once

// Values of flags: text to number, size, choice or list, each with an error
// that says what would be accepted. Pure functions.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mlx_flash/config.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

// Decimal digits only: no sign, no blanks, no fraction.
Result<uint64_t> parse_count(std::string_view text, uint64_t min, uint64_t max);

// A finite number in [min, max].
Result<double> parse_number(std::string_view text, double min, double max);

// "auto" is 0; else a size above 0 (base/size.h: a bare number is in GB).
Result<uint64_t> parse_size_or_auto(const std::string& text);

// "1,2,3", blanks and one pair of [] allowed. Empty text is an empty list.
Result<std::vector<int32_t>> parse_ids(std::string_view text);

// Lengths of successive forwards: "37,1,1", each at least 1.
Result<std::vector<uint32_t>> parse_chunks(std::string_view text);

// The value that belongs to a word of `choices`.
template <typename T>
Result<T> parse_choice(std::string_view text,
                       std::span<const std::pair<const char*, T>> choices) {
  std::string known;
  for (const auto& [word, value] : choices) {
    if (text == word) return value;
    known += (known.empty() ? "" : ", ") + std::string(word);
  }
  return invalid_input("'" + std::string(text) + "' is none of: " + known);
}

Result<Kernels> parse_kernels(std::string_view text);
Result<KvType> parse_kv_type(std::string_view text);
Result<IoBackend> parse_io(std::string_view text);

const char* kernels_name(Kernels kernels);

}  // namespace mlx_flash
