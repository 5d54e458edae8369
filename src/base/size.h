// SPDX-License-Identifier: MIT
#pragma once

// Sizes as people write them.

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace mlx_flash {

// "2", "2.0" (GB, 10^9 bytes), "1500MB", "1.5 GiB", "64KB", "100B". Units in
// any case: B, KB, MB, GB, TB are decimal, KiB, MiB, GiB, TiB binary. A
// fraction is exact, then rounded down to a byte. Refuses signs, exponents,
// NaN, anything else and 2^63 bytes or more.
Result<uint64_t> parse_size(std::string_view text);

// "64.0 MB", "1.5 GB", "999 B": decimal units, one digit after the point.
std::string format_size(uint64_t bytes);

}  // namespace mlx_flash
