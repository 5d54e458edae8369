// SPDX-License-Identifier: MIT
#include "text/utf8.h"

#include <utf8proc.h>

#include <cstring>

#include "text/unicode_versions.h"

namespace mlx_flash {
namespace {

// What may follow a lead byte: how many bytes, and the range of the first of
// them (Unicode 15, table 3-7). need == 0: not a lead byte.
struct Lead {
  size_t need;
  unsigned char low;
  unsigned char high;
};

Lead lead_of(unsigned char b) {
  if (b >= 0xC2 && b <= 0xDF) return {1, 0x80, 0xBF};
  if (b == 0xE0) return {2, 0xA0, 0xBF};
  if (b == 0xED) return {2, 0x80, 0x9F};
  if (b >= 0xE1 && b <= 0xEF) return {2, 0x80, 0xBF};
  if (b == 0xF0) return {3, 0x90, 0xBF};
  if (b >= 0xF1 && b <= 0xF3) return {3, 0x80, 0xBF};
  if (b == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

utf8proc_category_t category_of(uint32_t character) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(character));
}

}  // namespace

size_t find_invalid_utf8(std::string_view s) {
  const auto* p = reinterpret_cast<const unsigned char*>(s.data());
  const size_t n = s.size();
  size_t i = 0;
  while (i < n) {
    if (p[i] < 0x80) {
      ++i;
      while (i + 8 <= n) {  // runs of ASCII, eight at a time
        uint64_t word;
        std::memcpy(&word, p + i, 8);
        if ((word & 0x8080808080808080u) != 0) break;
        i += 8;
      }
      continue;
    }
    const Lead lead = lead_of(p[i]);
    if (lead.need == 0 || lead.need >= n - i) return i;
    if (p[i + 1] < lead.low || p[i + 1] > lead.high) return i;
    for (size_t k = 2; k <= lead.need; ++k) {
      if ((p[i + k] & 0xC0) != 0x80) return i;
    }
    i += lead.need + 1;
  }
  return std::string_view::npos;
}

uint32_t next_character(std::string_view s, size_t& pos) {
  const auto byte = [&](size_t k) {
    return static_cast<uint32_t>(static_cast<unsigned char>(s[pos + k]));
  };
  const uint32_t b = byte(0);
  uint32_t c = b;
  size_t length = 1;
  if (b >= 0xF0) {
    c = (b & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 |
        (byte(3) & 63);
    length = 4;
  } else if (b >= 0xE0) {
    c = (b & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
    length = 3;
  } else if (b >= 0x80) {
    c = (b & 31) << 6 | (byte(1) & 63);
    length = 2;
  }
  pos += length;
  return c;
}

uint32_t last_character(std::string_view s) {
  size_t pos = s.size() - 1;
  while (pos > 0 && (static_cast<unsigned char>(s[pos]) & 0xC0) == 0x80) --pos;
  return next_character(s, pos);
}

void append_utf8(std::string& out, uint32_t c) {
  const auto put = [&](uint32_t byte) { out += static_cast<char>(byte); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 63));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 63));
    put(0x80 | (c >> 6 & 63));
    put(0x80 | (c & 63));
  }
}

bool is_white_space(uint32_t c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_numeric(uint32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const utf8proc_category_t k = category_of(c);
  return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL ||
         k == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(uint32_t c) {
  if (c < 0x80) {
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) ||
           (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
  }
  if (c == 0x166D || c == 0x111C9) return true;  // no more since Unicode 12
  if (is_new_punctuation(c)) return false;
  const utf8proc_category_t k = category_of(c);
  return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

bool is_mark(uint32_t c) {
  if (c == 0x1CF2 || c == 0x1CF3) return true;  // no more since Unicode 12
  if (is_new_mark(c)) return false;
  const utf8proc_category_t k = category_of(c);
  return k >= UTF8PROC_CATEGORY_MN && k <= UTF8PROC_CATEGORY_ME;
}

bool is_word_character(uint32_t c) {
  if (c < 0x80) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
           (c >= 'a' && c <= 'z') || c == '_';
  }
  const utf8proc_category_t k = category_of(c);
  if (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NL) return true;
  if (k == UTF8PROC_CATEGORY_PC) return true;
  // Join_Control, and the enclosed letters that are Alphabetic.
  return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
         (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

void LossyUtf8::push(std::string_view bytes, std::string& out) {
  size_t i = 0;
  while (i < bytes.size()) {
    const auto b = static_cast<unsigned char>(bytes[i]);
    if (need_ == 0) {
      ++i;
      if (b < 0x80) {
        out += static_cast<char>(b);
        continue;
      }
      const Lead lead = lead_of(b);
      if (lead.need == 0) {
        out += kReplacementCharacter;
        continue;
      }
      pending_[0] = b;
      have_ = 1;
      need_ = lead.need;
      low_ = lead.low;
      high_ = lead.high;
      continue;
    }
    if (b < low_ || b > high_) {  // b starts anew
      finish(out);
      continue;
    }
    ++i;
    pending_[have_++] = b;
    low_ = 0x80;
    high_ = 0xBF;
    if (--need_ == 0) {
      out.append(reinterpret_cast<const char*>(pending_), have_);
      have_ = 0;
    }
  }
}

void LossyUtf8::finish(std::string& out) {
  if (need_ != 0) out += kReplacementCharacter;
  need_ = 0;
  have_ = 0;
}

}  // namespace mlx_flash
