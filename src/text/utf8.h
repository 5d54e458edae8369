// SPDX-License-Identifier: MIT
#pragma once

// UTF-8, and the few Unicode properties that tokenizers ask for.
//
// Functions that take a `string_view s` and are not called find_... require
// valid UTF-8: text is checked once, where it comes in. Pure functions,
// callable from any thread.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace mlx_flash {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Offset of the first byte that does not belong to well-formed UTF-8 (no
// surrogates, no overlong forms), or npos.
size_t find_invalid_utf8(std::string_view s);

// Bytes of the character that starts with this byte. REQUIRES: a lead byte.
inline size_t utf8_length(char lead) {
  const auto b = static_cast<unsigned char>(lead);
  return b < 0x80 ? 1 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
}

// The character at s[pos]; moves pos behind it. REQUIRES: pos < s.size().
uint32_t next_character(std::string_view s, size_t& pos);

// The last character of s. REQUIRES: !s.empty().
uint32_t last_character(std::string_view s);

void append_utf8(std::string& out, uint32_t character);

// Unicode White_Space.
bool is_white_space(uint32_t character);
// General category N*.
bool is_numeric(uint32_t character);
// General categories P* (or ASCII punctuation) and M*, of the Unicode versions
// that Hugging Face's tokenizers have (unicode_versions.h).
bool is_punctuation(uint32_t character);
bool is_mark(uint32_t character);
// \w of Unicode's regular expressions (UTS 18).
bool is_word_character(uint32_t character);

// Turns bytes that arrive in any pieces into valid UTF-8: every maximal broken
// part becomes one U+FFFD, as in Unicode's recommendation (and Rust's
// from_utf8_lossy). A half character waits for its rest. Thread-compatible.
class LossyUtf8 {
 public:
  void push(std::string_view bytes, std::string& out);
  void finish(std::string& out);  // the half character is broken after all

 private:
  unsigned char pending_[4] = {};
  size_t have_ = 0;        // bytes in pending_
  size_t need_ = 0;        // bytes still missing
  unsigned char low_ = 0;  // range of the next byte
  unsigned char high_ = 0;
};

}  // namespace mlx_flash
