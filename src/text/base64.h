// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>

namespace mlx_flash {

// Replaces `bytes` by what standard base64 text stands for, padded or not;
// false if it is not base64. Pure function.
bool decode_base64(std::string_view text, std::string& bytes);

}  // namespace mlx_flash
