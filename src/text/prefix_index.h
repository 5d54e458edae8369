// SPDX-License-Identifier: MIT
#pragma once

// Finds the strings of a table that a text starts with, byte by byte: a sorted
// list of their numbers (4 bytes each), narrowed with every byte. Does not own
// the strings: the same table is handed in at every call. Immutable once
// built; safe to read from any thread.

#include <array>
#include <cstdint>
#include <vector>

#include "base/string_table.h"

namespace mlx_flash {

class PrefixIndex {
 public:
  // Strings that share the bytes read so far.
  struct Range {
    uint32_t begin = 0;
    uint32_t end = 0;
    uint32_t depth = 0;  // bytes read
    bool empty() const { return begin == end; }
  };

  // Indexes the strings with these numbers; of equal strings the first counts.
  void build(const StringTable& strings, std::vector<uint32_t> numbers);

  Range start() const { return {0, static_cast<uint32_t>(sorted_.size()), 0}; }
  Range step(const StringTable& strings, Range range, unsigned char byte) const;

  // The number of the string that ends here, or -1.
  int64_t match(const StringTable& strings, Range range) const {
    if (range.empty()) return -1;
    const uint32_t number = sorted_[range.begin];
    return strings[number].size() == range.depth ? int64_t{number} : -1;
  }

  bool starts_with(unsigned char byte) const {
    return first_[byte] != first_[byte + size_t{1}];
  }
  size_t memory_bytes() const { return sorted_.capacity() * sizeof(uint32_t); }

 private:
  std::vector<uint32_t> sorted_;
  std::array<uint32_t, 257> first_{};  // where strings with each first byte are
};

}  // namespace mlx_flash
