// SPDX-License-Identifier: MIT
#pragma once

// Text from outside, made safe for one line of a message.

#include <string>
#include <string_view>

namespace mlx_flash {

// `text` between single quotes, cut at `chars_max` characters ("..." follows),
// bytes outside printable ASCII as \xNN. Names in hostile files may hold
// newlines, escape sequences or megabytes.
std::string quote(std::string_view text, size_t chars_max = 100);

// The same without quotes, for text that is already a sentence.
std::string printable(std::string_view text, size_t chars_max = 300);

}  // namespace mlx_flash
