// SPDX-License-Identifier: MIT
#pragma once

// SentencePiece's precompiled character map: a double-array trie from UTF-8
// sequences to their replacements. Layout: u32 bytes of the trie, the trie
// (u32 units, darts-clone's format), replacements that end in a zero byte.
// Immutable; safe to use from any thread.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mlx_flash {

class Charsmap {
 public:
  static Result<Charsmap> parse(std::string_view bytes);

  struct Match {
    size_t length;  // bytes of the text it replaces
    std::string_view replacement;
  };
  // The shortest or longest entry that `text` starts with.
  std::optional<Match> shortest(std::string_view text) const;
  std::optional<Match> longest(std::string_view text) const;

  size_t memory_bytes() const {
    return trie_.capacity() * sizeof(uint32_t) + replacements_.capacity();
  }

 private:
  std::optional<Match> find(std::string_view text, bool longest) const;

  std::vector<uint32_t> trie_;
  std::string replacements_;
};

}  // namespace mlx_flash
