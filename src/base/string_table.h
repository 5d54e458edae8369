// SPDX-License-Identifier: MIT
#pragma once

// A list of strings in two allocations: the bytes of all, and where each ends.
// Vocabularies have 32,000 to 260,000 entries; a std::string each would cost
// several times their bytes. Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mlx_flash {

class StringTable {
 public:
  size_t size() const { return ends_.size(); }
  bool empty() const { return ends_.empty(); }

  // Valid until the table changes. REQUIRES: i < size().
  std::string_view operator[](size_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

  void push_back(std::string_view s) {
    bytes_.append(s);
    ends_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  void reserve(size_t strings, size_t bytes) {
    ends_.reserve(strings);
    bytes_.reserve(bytes);
  }
  size_t memory_bytes() const {
    return bytes_.capacity() + ends_.capacity() * sizeof(uint32_t);
  }

 private:
  std::string bytes_;
  std::vector<uint32_t> ends_;  // end offset of each string in bytes_
};

}  // namespace mlx_flash
