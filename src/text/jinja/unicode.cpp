// SPDX-License-Identifier: MIT
#include "text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace mlx_flash::jinja {
namespace {

// Characters whose full mapping is longer than one code point, which
// utf8proc's simple mappings do not give. Sorted by code point.
struct SpecialCase {
  uint32_t from;
  const char* upper;
  const char* title;
};

constexpr SpecialCase kSpecialCases[] = {
#include "text/jinja/special_casing.inc"
};

const SpecialCase* find_special(char32_t c) {
  if (c < 0xDF) return nullptr;
  const auto* end = std::end(kSpecialCases);
  const auto* it = std::lower_bound(
      std::begin(kSpecialCases), end, c, [](const SpecialCase& a, char32_t b) {
        return a.from < b;
      });
  return it != end && it->from == c ? it : nullptr;
}

char32_t simple(utf8proc_int32_t (*map)(utf8proc_int32_t), char32_t c) {
  return static_cast<char32_t>(map(static_cast<utf8proc_int32_t>(c)));
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

void append_upper(std::string* out, char32_t c) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c));
  } else if (const SpecialCase* special = find_special(c)) {
    *out += special->upper;
  } else {
    append_utf8(out, simple(utf8proc_toupper, c));
  }
}

void append_title(std::string* out, char32_t c) {
  if (c < 0x80) return append_upper(out, c);
  if (const SpecialCase* special = find_special(c)) {
    *out += special->title;
  } else {
    append_utf8(out, simple(utf8proc_totitle, c));
  }
}

constexpr char32_t kCapitalSigma = 0x3A3;

bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == '\'' || c == '.' || c == ':' || c == 0xB7 || c == 0x2019;
  }
}

// Unicode's Final_Sigma: a cased letter before, none after.
bool is_final_sigma(std::string_view text, size_t begin_byte, size_t end_byte) {
  bool cased_before = false;
  for (size_t at = begin_byte; at > 0;) {
    --at;
    if ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) continue;
    size_t next = at;
    const char32_t c = next_code_point(text, &next);
    if (is_case_ignorable(c)) continue;
    cased_before = is_cased(c);
    break;
  }
  if (!cased_before) return false;
  for (size_t at = end_byte; at < text.size();) {
    const char32_t c = next_code_point(text, &at);
    if (is_case_ignorable(c)) continue;
    return !is_cased(c);
  }
  return true;
}

// `text` is the whole string: a sigma looks at its neighbours.
void append_lower(std::string* out,
                  char32_t c,
                  std::string_view text,
                  size_t begin_byte,
                  size_t end_byte) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
  } else if (c == 0x130) {
    *out += "i\xCC\x87";
  } else if (c == kCapitalSigma && is_final_sigma(text, begin_byte, end_byte)) {
    append_utf8(out, 0x3C2);
  } else {
    append_utf8(out, simple(utf8proc_tolower, c));
  }
}

}  // namespace

bool is_valid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte < 0x80) {
      ++at;
      continue;
    }
    utf8proc_int32_t c = 0;
    const utf8proc_ssize_t used = utf8proc_iterate(
        reinterpret_cast<const utf8proc_uint8_t*>(text.data() + at),
        static_cast<utf8proc_ssize_t>(text.size() - at),
        &c);
    if (used <= 0) return false;
    at += static_cast<size_t>(used);
  }
  return true;
}

size_t count_code_points(std::string_view text) {
  size_t count = 0;
  for (const char c : text) {
    count += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  }
  return count;
}

char32_t next_code_point(std::string_view text, size_t* offset_byte) {
  size_t at = *offset_byte;
  const auto lead = static_cast<unsigned char>(text[at++]);
  char32_t c = lead;
  int more = 0;
  if (lead >= 0xF0) {
    c = lead & 0x07;
    more = 3;
  } else if (lead >= 0xE0) {
    c = lead & 0x0F;
    more = 2;
  } else if (lead >= 0xC0) {
    c = lead & 0x1F;
    more = 1;
  }
  for (; more > 0 && at < text.size(); --more, ++at) {
    c = (c << 6) | (static_cast<unsigned char>(text[at]) & 0x3F);
  }
  *offset_byte = at;
  return c;
}

size_t byte_offset(std::string_view text, size_t index) {
  size_t at = 0;
  while (index > 0 && at < text.size()) {
    next_code_point(text, &at);
    --index;
  }
  return at;
}

void append_utf8(std::string* out, char32_t code_point) {
  if (code_point < 0x80) {
    out->push_back(static_cast<char>(code_point));
    return;
  }
  utf8proc_uint8_t bytes[4];
  const utf8proc_ssize_t count =
      utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(count));
}

bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 28 && c <= 32);
  return c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_alpha(char32_t c) {
  const utf8proc_category_t k = category(c);
  return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}

bool is_decimal(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}

bool is_digit(char32_t c) {
  if (is_decimal(c)) return true;
  return c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247C) ||
         (c >= 0x2488 && c <= 0x2490) || c == 0x24EA ||
         (c >= 0x24F5 && c <= 0x24FD) || c == 0x24FF ||
         (c >= 0x2776 && c <= 0x277E) || (c >= 0x2780 && c <= 0x2788) ||
         (c >= 0x278A && c <= 0x2792);
}

bool is_numeric(char32_t c) {
  const utf8proc_category_t k = category(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL ||
         k == UTF8PROC_CATEGORY_NO;
}

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

bool is_alnum(char32_t c) {
  return is_alpha(c) || is_numeric(c);
}

bool is_lower(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA ||
         (c >= 0x2B0 && c <= 0x2B8) || (c >= 0x24D0 && c <= 0x24E9) ||
         (c >= 0x2170 && c <= 0x217F);
}

bool is_upper(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x24B6 && c <= 0x24CF) ||
         (c >= 0x2160 && c <= 0x216F);
}

bool is_title(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LT;
}

bool is_cased(char32_t c) {
  return is_lower(c) || is_upper(c) || is_title(c);
}

bool is_identifier_start(char32_t c) {
  if (c < 0x80) {
    return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  }
  return is_alpha(c) || category(c) == UTF8PROC_CATEGORY_NL;
}

bool is_identifier_part(char32_t c) {
  if (is_identifier_start(c)) return true;
  if (c < 0x80) return c >= '0' && c <= '9';
  const utf8proc_category_t k = category(c);
  return k == UTF8PROC_CATEGORY_MN || k == UTF8PROC_CATEGORY_MC ||
         k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_PC;
}

bool is_identifier(std::string_view text) {
  if (text.empty()) return false;
  size_t at = 0;
  if (!is_identifier_start(next_code_point(text, &at))) return false;
  while (at < text.size()) {
    if (!is_identifier_part(next_code_point(text, &at))) return false;
  }
  return true;
}

std::string to_upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    append_upper(&out, next_code_point(text, &at));
  }
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    append_lower(&out, c, text, begin, at);
  }
  return out;
}

std::string to_title(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool cased_before = false;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    if (cased_before) {
      append_lower(&out, c, text, begin, at);
    } else {
      append_title(&out, c);
    }
    cased_before = is_cased(c);
  }
  return out;
}

std::string capitalize(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    if (begin == 0) {
      append_title(&out, c);
    } else {
      append_lower(&out, c, text, begin, at);
    }
  }
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    if (is_upper(c)) {
      append_lower(&out, c, text, begin, at);
    } else if (is_lower(c)) {
      append_upper(&out, c);
    } else {
      append_utf8(&out, c);
    }
  }
  return out;
}

std::string fold_case(std::string_view text) {
  utf8proc_uint8_t* folded = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()),
                   &folded,
                   UTF8PROC_CASEFOLD);
  if (size < 0) return std::string(text);
  std::string out(reinterpret_cast<const char*>(folded),
                  static_cast<size_t>(size));
  std::free(folded);  // utf8proc allocates with malloc
  return out;
}

namespace {

template <typename Drop>
std::string_view strip_left_if(std::string_view text, Drop drop) {
  size_t at = 0;
  while (at < text.size()) {
    size_t next = at;
    if (!drop(next_code_point(text, &next))) break;
    at = next;
  }
  return text.substr(at);
}

template <typename Drop>
std::string_view strip_right_if(std::string_view text, Drop drop) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 &&
           (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) {
      --begin;
    }
    size_t next = begin;
    if (!drop(next_code_point(text, &next))) break;
    end = begin;
  }
  return text.substr(0, end);
}

bool contains(std::string_view chars, char32_t c) {
  for (size_t at = 0; at < chars.size();) {
    if (next_code_point(chars, &at) == c) return true;
  }
  return false;
}

}  // namespace

std::string_view strip_left(std::string_view text) {
  return strip_left_if(text, is_space);
}

std::string_view strip_right(std::string_view text) {
  return strip_right_if(text, is_space);
}

std::string_view strip_left(std::string_view text, std::string_view chars) {
  return strip_left_if(text, [&](char32_t c) { return contains(chars, c); });
}

std::string_view strip_right(std::string_view text, std::string_view chars) {
  return strip_right_if(text, [&](char32_t c) { return contains(chars, c); });
}

size_t find_text(std::string_view text,
                 std::string_view needle,
                 size_t from_byte) {
  if (from_byte > text.size()) return std::string_view::npos;
  if (needle.empty()) return from_byte;
  const void* found = memmem(text.data() + from_byte,
                             text.size() - from_byte,
                             needle.data(),
                             needle.size());
  if (!found) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t find_last_text(std::string_view text, std::string_view needle) {
  constexpr size_t kShort = 16;
  if (needle.size() <= kShort) return text.rfind(needle);
  const std::string reversed(text.rbegin(), text.rend());
  const std::string reversed_needle(needle.rbegin(), needle.rend());
  const size_t found = find_text(reversed, reversed_needle);
  if (found == std::string_view::npos) return found;
  return text.size() - found - needle.size();
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
         c == 0x2028 || c == 0x2029;
}

}  // namespace mlx_flash::jinja
