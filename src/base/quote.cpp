// SPDX-License-Identifier: MIT
#include "base/quote.h"

#include <fmt/format.h>

namespace mlx_flash {

std::string printable(std::string_view text, size_t chars_max) {
  std::string out;
  size_t used = 0;
  for (const char c : text) {
    if (used++ == chars_max) {
      out += "...";
      break;
    }
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::string quote(std::string_view text, size_t chars_max) {
  return fmt::format("'{}'", printable(text, chars_max));
}

}  // namespace mlx_flash
