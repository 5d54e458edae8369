// SPDX-License-Identifier: MIT
#pragma once

// The strings of a vocabulary and their ids, compactly: the bytes of all
// strings in one block, and an open-addressing table of ids beside it (about
// 5 bytes an entry). Immutable once built; safe to read from any thread.

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/string_table.h"

namespace mlx_flash {

// Highest id a vocabulary may use. The largest in the field have 262,144.
inline constexpr int64_t kTokenIdMax = (1 << 24) - 1;

class Vocab {
 public:
  static constexpr int32_t kNone = -1;

  // Highest id + 1.
  size_t size() const { return strings_.size(); }

  // The id of a string, or kNone.
  int32_t find(std::string_view s) const;

  // The string of an id; empty where the vocabulary leaves an id out.
  // REQUIRES: 0 <= id < size().
  std::string_view operator[](int32_t id) const {
    return strings_[static_cast<size_t>(id)];
  }
  // Whether an id in [0, size()) names a token.
  bool has(int32_t id) const {
    return id >= 0 && static_cast<size_t>(id) < size() &&
           (!(*this)[id].empty() || id == empty_id_);
  }

  const StringTable& strings() const { return strings_; }
  size_t memory_bytes() const {
    return strings_.memory_bytes() + slots_.capacity() * sizeof(int32_t) +
           tags_.capacity();
  }

 private:
  friend class VocabBuilder;

  size_t slot_of(uint64_t hash) const;

  StringTable strings_;         // by id
  std::vector<int32_t> slots_;  // ids, kNone where free
  std::vector<uint8_t> tags_;   // 8 bits of the hash of each slot's string
  int32_t empty_id_ = kNone;    // the token that is the empty string
};

// Collects strings with ids in any order; cheap when ids count up from 0.
class VocabBuilder {
 public:
  void reserve(size_t tokens, size_t bytes) { strings_.reserve(tokens, bytes); }

  // Refuses ids outside [0, kTokenIdMax]. `s` is copied.
  Status add(std::string_view s, int64_t id);

  size_t tokens() const { return strings_.size(); }

  // Fails if an id or (unless `keep_first`) a string comes twice, or if ids
  // leave absurd gaps. With keep_first, find() gives the first of equal ones.
  Result<Vocab> build(bool keep_first) &&;

 private:
  StringTable strings_;        // in the order of add()
  std::vector<uint32_t> ids_;  // empty while ids_[i] would be i
};

}  // namespace mlx_flash
