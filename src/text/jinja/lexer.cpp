// SPDX-License-Identifier: MIT
#include "text/jinja/lexer.h"

#include <cctype>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

// "\r\n" and "\r" become "\n"; one trailing newline is dropped.
std::string normalize(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      out += source[i];
      continue;
    }
    out += '\n';
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_ascii_digit(char c) {
  return c >= '0' && c <= '9';
}

// Decodes what follows a backslash in a string literal.
class Unescaper {
 public:
  Unescaper(std::string_view text, Position position)
      : text_(text), position_(position) {}

  std::string run() {
    while (at_ < text_.size()) {
      if (text_[at_] != '\\') {
        out_ += text_[at_++];
      } else {
        ++at_;
        escape();
      }
    }
    return std::move(out_);
  }

 private:
  void escape() {
    static constexpr std::string_view kFrom = "\\'\"abfnrtv";
    static constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    const char c = text_[at_];
    if (const size_t found = kFrom.find(c); found != std::string_view::npos) {
      out_ += kTo[found];
      ++at_;
    } else if (c == '\n') {
      ++at_;
    } else if (c == 'x') {
      code_point(2);
    } else if (c == 'u') {
      code_point(4);
    } else if (c == 'U') {
      code_point(8);
    } else if (c >= '0' && c <= '7') {
      octal();
    } else if (c == 'N') {
      refuse("\\N{...} escapes are not supported in strings");
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      escaped_character();
    } else {
      out_ += '\\';  // an unknown escape stays as it is
    }
  }

  [[noreturn]] void refuse(const char* why) const {
    throw TemplateError(why, position_);
  }

  void code_point(size_t digits) {
    ++at_;
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      if (at_ >= text_.size() ||
          !std::isxdigit(static_cast<unsigned char>(text_[at_]))) {
        refuse("a \\x, \\u or \\U escape in a string is cut short");
      }
      const char c = text_[at_];
      const int digit = is_ascii_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10;
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      refuse("an escape in a string is no character (surrogates are not)");
    }
    append_utf8(&out_, value);
  }

  void octal() {
    uint32_t value = 0;
    for (int i = 0; i < 3 && at_ < text_.size(); ++i, ++at_) {
      if (text_[at_] < '0' || text_[at_] > '7') break;
      value = value * 8 + static_cast<uint32_t>(text_[at_] - '0');
    }
    append_utf8(&out_, value);
  }

  // Jinja2 escapes the character first, so that the backslash escapes that
  // backslash: "\é" reads \xe9.
  void escaped_character() {
    const char32_t c = next_code_point(text_, &at_);
    const int digits = c < 0x100 ? 2 : (c < 0x10000 ? 4 : 8);
    out_ += '\\';
    out_ += digits == 2 ? 'x' : (digits == 4 ? 'u' : 'U');
    for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4) {
      out_ += "0123456789abcdef"[(c >> shift) & 0xF];
    }
  }

  std::string_view text_;
  Position position_;
  size_t at_ = 0;
  std::string out_;
};

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    add(TokenKind::kEnd, "", at_);
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const {
    return std::string_view(source_).substr(at_);
  }
  bool looking_at(std::string_view text) const {
    return rest().substr(0, text.size()) == text;
  }

  // Offsets only grow, so that the whole source is walked once.
  Position position_of(size_t offset) {
    while (seen_ < offset) {
      const char c = source_[seen_++];
      if (c == '\n') {
        ++here_.line;
        here_.column = 1;
      } else if ((static_cast<unsigned char>(c) & 0xC0) != 0x80) {
        ++here_.column;
      }
    }
    return here_;
  }

  [[noreturn]] void refuse(std::string why, size_t offset) {
    throw TemplateError(std::move(why), position_of(offset));
  }

  Token& add(TokenKind kind, std::string text, size_t offset) {
    Token token;
    token.kind = kind;
    token.position = position_of(offset);
    token.text = std::move(text);
    tokens_.push_back(std::move(token));
    return tokens_.back();
  }

  size_t skip_space(size_t from) const {
    const std::string_view all(source_);
    return source_.size() - strip_left(all.substr(from)).size();
  }

  // Text, then a tag.
  void root() {
    const size_t begin = at_;
    size_t tag = begin;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= source_.size()) {
        add(TokenKind::kData, source_.substr(begin), begin);
        at_ = source_.size();
        return;
      }
      const char next = source_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
    }
    const char kind = source_[tag + 1];
    at_ = tag + 2;
    char sign = 0;
    if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) {
      sign = source_[at_++];
    }
    data(begin, tag, sign, kind == '{');
    if (kind == '#') {
      comment();
    } else if (kind == '{') {
      add(TokenKind::kVariableBegin, "", tag);
      line_starting_ = false;
      inside(false);
    } else if (!raw(tag)) {
      add(TokenKind::kBlockBegin, "", tag);
      line_starting_ = false;
      inside(true);
    }
  }

  // Text before a tag, stripped as its sign and lstrip_blocks ask.
  void data(size_t begin, size_t end, char sign, bool is_variable) {
    std::string_view text =
        std::string_view(source_).substr(begin, end - begin);
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && !is_variable) {
      const size_t newline = text.rfind('\n');
      const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line > 0 || line_starting_) &&
          strip_left(text.substr(line)).empty()) {
        text = text.substr(0, line);
      }
    }
    if (!text.empty()) add(TokenKind::kData, std::string(text), begin);
  }

  // After "{#" and its sign.
  void comment() {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) refuse("Missing end of comment tag", at_);
    const char sign = end > at_ ? source_[end - 1] : ' ';
    finish_tag(end + 2, sign);
  }

  // What a closing delimiter that ends at `after` takes with it.
  void finish_tag(size_t after, char sign) {
    at_ = after;
    if (sign == '-') {
      at_ = skip_space(after);
    } else if (sign != '+' && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
    }
    line_starting_ = source_[at_ - 1] == '\n';
  }

  // True, with the text up to endraw as data, when "{%" opens a raw block.
  bool raw(size_t tag) {
    size_t at = skip_space(at_);
    if (source_.compare(at, 3, "raw") != 0) return false;
    at = skip_space(at + 3);
    if (source_.compare(at, 3, "-%}") == 0) {
      at = skip_space(at + 3);
    } else if (source_.compare(at, 2, "%}") == 0) {
      at += 2;
    } else {
      return false;
    }
    line_starting_ = source_[at - 1] == '\n';
    const size_t begin = at;
    for (size_t end = begin;; ++end) {
      end = source_.find("{%", end);
      if (end == std::string::npos) {
        refuse("Missing end of raw directive", tag);
      }
      if (end_raw(begin, end)) return true;
    }
  }

  bool end_raw(size_t begin, size_t tag) {
    size_t at = tag + 2;
    char sign = 0;
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) {
      sign = source_[at++];
    }
    at = skip_space(at);
    if (source_.compare(at, 6, "endraw") != 0) return false;
    at = skip_space(at + 6);
    char closing = 0;
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) {
      closing = source_[at++];
    }
    if (source_.compare(at, 2, "%}") != 0) return false;
    data(begin, tag, sign, false);
    finish_tag(at + 2, closing);
    return true;
  }

  // Tokens up to the end of a block or variable tag.
  void inside(bool is_block) {
    for (;;) {
      if (brackets_.empty() && tag_end(is_block)) return;
      if (at_ >= source_.size()) return;  // the parser names what is missing
      const size_t begin = at_;
      at_ = skip_space(at_);
      if (at_ != begin) continue;
      const char c = source_[at_];
      if (is_ascii_digit(c)) {
        number();
      } else if (c == '\'' || c == '"') {
        string(c);
      } else if (!name() && !operator_token()) {
        size_t end = at_;
        next_code_point(source_, &end);
        refuse("unexpected char '" + source_.substr(at_, end - at_) + "'", at_);
      }
    }
  }

  bool tag_end(bool is_block) {
    const char* close = is_block ? "%}" : "}}";
    const bool minus = looking_at(std::string("-") + close);
    const bool plus = is_block && looking_at(std::string("+") + close);
    if (!minus && !plus && !looking_at(close)) return false;
    add(is_block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "", at_);
    const size_t after = at_ + (minus || plus ? 3 : 2);
    if (is_block || minus) {
      finish_tag(after, minus ? '-' : (plus ? '+' : ' '));
    } else {
      at_ = after;
      line_starting_ = false;
    }
    return true;
  }

  bool name() {
    size_t end = at_;
    while (end < source_.size()) {
      size_t next = end;
      const char32_t c = next_code_point(source_, &next);
      if (c != '_' && !is_identifier_part(c) && !is_numeric(c)) break;
      end = next;
    }
    if (end == at_) return false;
    std::string text = source_.substr(at_, end - at_);
    if (!is_identifier(text)) refuse("Invalid character in identifier", at_);
    add(TokenKind::kName, std::move(text), at_);
    at_ = end;
    return true;
  }

  bool operator_token() {
    static constexpr std::string_view kTwo[] = {
        "//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kOne = "+-/*%~[](){}><=.:|,;";
    size_t size = 0;
    for (const std::string_view two : kTwo) {
      if (looking_at(two)) size = 2;
    }
    if (size == 0 && kOne.find(source_[at_]) != std::string_view::npos) {
      size = 1;
    }
    if (size == 0) return false;
    balance(source_[at_]);
    add(TokenKind::kOperator, source_.substr(at_, size), at_);
    at_ += size;
    return true;
  }

  void balance(char c) {
    if (c == '(') brackets_ += ')';
    if (c == '[') brackets_ += ']';
    if (c == '{') brackets_ += '}';
    if (c != ')' && c != ']' && c != '}') return;
    if (brackets_.empty()) refuse(std::string("unexpected '") + c + "'", at_);
    const char expected = brackets_.back();
    brackets_.pop_back();
    if (c != expected) {
      refuse(std::string("unexpected '") + c + "', expected '" + expected + "'",
             at_);
    }
  }

  void string(char quote) {
    const size_t begin = at_;
    size_t end = begin + 1;
    while (end < source_.size() && source_[end] != quote) {
      end += source_[end] == '\\' ? 2 : 1;
    }
    if (end >= source_.size()) {
      refuse(std::string("unexpected char '") + quote +
                 "' (the string does not end)",
             begin);
    }
    const Position position = position_of(begin);
    const std::string_view inner =
        std::string_view(source_).substr(begin + 1, end - begin - 1);
    add(TokenKind::kString, Unescaper(inner, position).run(), begin);
    at_ = end + 1;
  }

  // (\d+_)*\d+ from `from`; returns its end, or `from` when there is none.
  size_t digits_end(size_t from) const {
    size_t end = from;
    while (end < source_.size()) {
      if (is_ascii_digit(source_[end])) {
        ++end;
      } else if (source_[end] == '_' && end > from &&
                 end + 1 < source_.size() && is_ascii_digit(source_[end + 1])) {
        ++end;
      } else {
        break;
      }
    }
    return end;
  }

  size_t exponent_end(size_t from) const {
    if (from >= source_.size() || (source_[from] | 0x20) != 'e') return from;
    size_t at = from + 1;
    if (at < source_.size() && (source_[at] == '+' || source_[at] == '-')) ++at;
    const size_t end = digits_end(at);
    return end == at ? from : end;
  }

  bool float_number() {
    if (at_ > 0 && source_[at_ - 1] == '.') return false;
    const size_t whole = digits_end(at_);
    size_t end = whole;
    if (end + 1 < source_.size() && source_[end] == '.') {
      const size_t fraction = digits_end(end + 1);
      if (fraction != end + 1) end = fraction;
    }
    end = exponent_end(end);
    if (end == whole) return false;
    std::string digits = without_underscores(at_, end);
    Token& token = add(TokenKind::kFloat, digits, at_);
    // strtod gives 0 and infinity beyond the range, as Python does.
    token.real = std::strtod(digits.c_str(), nullptr);
    at_ = end;
    return true;
  }

  std::string without_underscores(size_t begin, size_t end) const {
    std::string out;
    for (size_t i = begin; i < end; ++i) {
      if (source_[i] != '_') out += source_[i];
    }
    return out;
  }

  void number() {
    if (float_number()) return;
    const size_t begin = at_;
    int base = 10;
    size_t end = begin;
    if (source_[begin] == '0' && begin + 1 < source_.size()) {
      const int marker = source_[begin + 1] | 0x20;
      base =
          marker == 'x' ? 16 : (marker == 'o' ? 8 : (marker == 'b' ? 2 : 10));
    }
    if (base != 10) {
      end = based_end(begin + 2, base);
      if (end == begin + 2) base = 10;
    }
    if (base == 10) end = decimal_end(begin);
    const std::string digits =
        without_underscores(base == 10 ? begin : begin + 2, end);
    Token& token = add(TokenKind::kInteger, digits, begin);
    const auto result = std::from_chars(
        digits.data(), digits.data() + digits.size(), token.integer, base);
    if (result.ec != std::errc()) {
      if (base != 10) refuse("an integer does not fit in 64 bits", begin);
      token.kind = TokenKind::kBigInteger;
    }
    at_ = end;
  }

  // A zero takes only zeros with it: "012" is two tokens, as in Jinja2.
  size_t decimal_end(size_t begin) const {
    if (source_[begin] != '0') return digits_end(begin);
    size_t end = begin + 1;
    while (end < source_.size() &&
           (source_[end] == '0' ||
            (source_[end] == '_' && end + 1 < source_.size() &&
             source_[end + 1] == '0'))) {
      ++end;
    }
    return end;
  }

  size_t based_end(size_t from, int base) const {
    size_t end = from;
    const auto is_digit_of_base = [&](size_t i) {
      if (i >= source_.size()) return false;
      const char c = source_[i];
      if (base == 16) return std::isxdigit(static_cast<unsigned char>(c)) != 0;
      return c >= '0' && c < '0' + base;
    };
    while (end < source_.size()) {
      if (is_digit_of_base(end)) {
        ++end;
      } else if (source_[end] == '_' && is_digit_of_base(end + 1)) {
        ++end;
      } else {
        break;
      }
    }
    return end;
  }

  const std::string source_;
  size_t at_ = 0;
  size_t seen_ = 0;
  Position here_{1, 1};
  bool line_starting_ = true;
  std::string brackets_;  // the closing ones that are due
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace mlx_flash::jinja
