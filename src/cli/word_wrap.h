// SPDX-License-Identifier: MIT
#pragma once

// Breaks lines between words while text streams to a terminal: characters
// appear at once, and a word that turns out not to fit moves to the next line.
// Thread-compatible.

#include <string>
#include <string_view>

namespace mlx_flash {

class WordWrap {
 public:
  // `columns` of the terminal. REQUIRES: columns > 1.
  explicit WordWrap(int columns);

  // What to write for `text`, which is whole UTF-8 characters.
  std::string add(std::string_view text);

 private:
  void add_character(std::string_view bytes, int width, std::string& out);

  int columns_;  // that are used: one less, so that the terminal never wraps
  int column_ = 0;
  std::string word_;    // since the last blank
  int word_width_ = 0;  // columns of word_
};

}  // namespace mlx_flash
