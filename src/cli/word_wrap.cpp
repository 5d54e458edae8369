// SPDX-License-Identifier: MIT
#include "cli/word_wrap.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>

#include "base/check.h"

namespace mlx_flash {

WordWrap::WordWrap(int columns) : columns_(columns - 1) {
  FLASH_CHECK(columns > 1);
}

std::string WordWrap::add(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    utf8proc_int32_t point = 0;
    utf8proc_ssize_t n =
        utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                         static_cast<utf8proc_ssize_t>(text.size()),
                         &point);
    int width = 1;
    if (n <= 0) {
      n = 1;  // not a character: the terminal shows something one column wide
    } else {
      width = utf8proc_charwidth(point);
    }
    add_character(text.substr(0, static_cast<size_t>(n)), width, out);
    text.remove_prefix(static_cast<size_t>(n));
  }
  return out;
}

void WordWrap::add_character(std::string_view bytes,
                             int width,
                             std::string& out) {
  const char first = bytes.front();
  if (first == '\n' || first == ' ' || first == '\t') {
    word_.clear();
    word_width_ = 0;
    if (first == '\n') {
      column_ = 0;
    } else {
      const int blank = first == '\t' ? 8 - column_ % 8 : 1;
      if (column_ + blank > columns_) {  // the end of the line is blank enough
        out += '\n';
        column_ = 0;
        return;
      }
      column_ += blank;
    }
    out += first;
    return;
  }
  if (column_ + width > columns_) {
    // A word as long as the line is cut where it stands.
    const bool moves = word_width_ > 0 && word_width_ < column_;
    if (moves) {
      out += fmt::format("\x1b[{}D\x1b[K\n{}", word_width_, word_);
      column_ = word_width_;
    } else {
      out += '\n';
      column_ = 0;
      word_.clear();
      word_width_ = 0;
    }
  }
  out += bytes;
  column_ += width;
  word_ += bytes;
  word_width_ += width;
}

}  // namespace mlx_flash
