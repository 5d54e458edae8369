// SPDX-License-Identifier: MIT
#include "text/charsmap.h"

#include <fmt/format.h>

#include <cstring>

#include "text/utf8.h"

namespace mlx_flash {
namespace {

// Units of darts-clone (darts.h, DoubleArrayUnit).
bool has_leaf(uint32_t unit) {
  return (unit >> 8 & 1) == 1;
}
uint32_t value_of(uint32_t unit) {
  return unit & 0x7FFFFFFF;
}
uint32_t label_of(uint32_t unit) {
  return unit & 0x800000FF;
}
uint32_t offset_of(uint32_t unit) {
  return unit >> 10 << ((unit & 0x200) >> 6);
}

}  // namespace

Result<Charsmap> Charsmap::parse(std::string_view bytes) {
  Charsmap map;
  uint32_t trie_bytes = 0;
  if (bytes.size() < 4) return invalid_input("charsmap of less than 4 bytes");
  std::memcpy(&trie_bytes, bytes.data(), 4);
  if (trie_bytes > bytes.size() - 4 || trie_bytes % 4 != 0) {
    return invalid_input(
        fmt::format("charsmap of {} bytes claims a trie of {} bytes",
                    bytes.size(),
                    trie_bytes));
  }
  map.trie_.resize(trie_bytes / 4);
  if (trie_bytes > 0) {
    std::memcpy(map.trie_.data(), bytes.data() + 4, trie_bytes);
  }
  map.replacements_ = std::string(bytes.substr(4 + trie_bytes));
  const size_t broken = find_invalid_utf8(map.replacements_);
  if (broken != std::string_view::npos) {
    return invalid_input(fmt::format(
        "charsmap: byte {} of the replacements is not UTF-8", broken));
  }
  return map;
}

std::optional<Charsmap::Match> Charsmap::find(std::string_view text,
                                              bool longest) const {
  std::optional<Match> best;
  if (trie_.empty()) return best;
  size_t node = offset_of(trie_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const auto b = static_cast<unsigned char>(text[i]);
    node ^= b;
    if (node >= trie_.size()) break;
    const uint32_t unit = trie_[node];
    if (label_of(unit) != b) break;
    node ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    if (node >= trie_.size()) break;
    const size_t begin = value_of(trie_[node]);
    if (begin >= replacements_.size()) break;
    std::string_view replacement(replacements_);
    replacement.remove_prefix(begin);
    replacement = replacement.substr(0, replacement.find('\0'));
    // An entry into the middle of a character comes from a broken file.
    if (find_invalid_utf8(replacement) != std::string_view::npos) break;
    best = Match{i + 1, replacement};
    if (!longest) break;
  }
  return best;
}

std::optional<Charsmap::Match> Charsmap::shortest(std::string_view text) const {
  return find(text, false);
}

std::optional<Charsmap::Match> Charsmap::longest(std::string_view text) const {
  return find(text, true);
}

}  // namespace mlx_flash
