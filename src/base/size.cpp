// SPDX-License-Identifier: MIT
#include "base/size.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/quote.h"

namespace mlx_flash {
namespace {

__extension__ using Wide = unsigned __int128;

struct Unit {
  const char* name;  // lower case
  uint64_t bytes;
};

constexpr Unit kUnits[] = {
    {"", 1'000'000'000},
    {"b", 1},
    {"kb", 1'000},
    {"mb", 1'000'000},
    {"gb", 1'000'000'000},
    {"tb", 1'000'000'000'000},
    {"kib", 1ULL << 10},
    {"mib", 1ULL << 20},
    {"gib", 1ULL << 30},
    {"tib", 1ULL << 40},
};

constexpr uint64_t kSizeMax = 1ULL << 63;
constexpr size_t kDigitsMax = 18;  // 10^18 fits into 64 bits

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string_view trim(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

Status bad_size(std::string_view text, const char* why) {
  return invalid_input(fmt::format(
      "{} is not a size: {} (write 2 or 2.0 for GB, 1500MB, 1.5GiB)",
      quote(text, 40),
      why));
}

}  // namespace

Result<uint64_t> parse_size(std::string_view text) {
  const std::string_view body = trim(text);
  size_t at = 0;
  uint64_t whole = 0;
  size_t digits = 0;
  for (; at < body.size() && is_digit(body[at]); ++at, ++digits) {
    if (whole > kSizeMax / 10) return bad_size(text, "too large");
    whole = whole * 10 + static_cast<uint64_t>(body[at] - '0');
  }
  uint64_t fraction = 0;
  uint64_t fraction_unit = 1;
  if (at < body.size() && body[at] == '.') {
    ++at;
    for (size_t n = 0; at < body.size() && is_digit(body[at]); ++at, ++n) {
      ++digits;
      if (n >= kDigitsMax) continue;  // below a byte in any unit
      fraction = fraction * 10 + static_cast<uint64_t>(body[at] - '0');
      fraction_unit *= 10;
    }
  }
  if (digits == 0) {
    if (body.empty()) return bad_size(text, "empty");
    if (body.front() == '-') return bad_size(text, "negative");
    return bad_size(text, "it must begin with a number");
  }
  std::string unit(trim(body.substr(at)));
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) {
    return static_cast<char>(std::tolower(c));
  });
  const auto* found =
      std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& u) {
        return unit == u.name;
      });
  if (found == std::end(kUnits)) {
    return bad_size(text,
                    "the unit must be one of B KB MB GB TB KiB MiB GiB "
                    "TiB");
  }
  const Wide bytes = static_cast<Wide>(whole) * found->bytes +
                     static_cast<Wide>(fraction) * found->bytes / fraction_unit;
  if (bytes >= kSizeMax) return bad_size(text, "too large");
  return static_cast<uint64_t>(bytes);
}

std::string format_size(uint64_t bytes) {
  if (bytes < 1000) return fmt::format("{} B", bytes);
  constexpr const char* kNames[] = {"KB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(bytes) / 1000;
  size_t unit = 0;
  // 999.95 would print as 1000.0.
  while (value >= 999.95 && unit + 1 < std::size(kNames)) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kNames[unit]);
}

}  // namespace mlx_flash
