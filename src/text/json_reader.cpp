// SPDX-License-Identifier: MIT
#include "text/json_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "text/utf8.h"

namespace mlx_flash {
namespace {

constexpr size_t kBufferBytes = 128 << 10;
constexpr size_t kDepthMax = 64;
constexpr size_t kStringBytesMax = 32 << 20;
constexpr size_t kNumberBytesMax = 64;

bool is_json_space(int c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

int hex_digit(int c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<std::unique_ptr<JsonReader>> JsonReader::open(const std::string& path) {
  std::unique_ptr<JsonReader> reader(new JsonReader(path));
  reader->file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader->file_ < 0) {
    const int error = errno;
    const std::string message =
        fmt::format("{}: cannot open: {}", path, std::strerror(error));
    return error == ENOENT ? invalid_input(message) : io_error(message);
  }
  reader->buffer_.resize(kBufferBytes);
  reader->begin_ = reader->cursor_ = reader->end_ = reader->buffer_.data();
  return reader;
}

JsonReader::JsonReader(std::string_view text, std::string name)
    : name_(std::move(name)),
      begin_(text.data()),
      cursor_(text.data()),
      end_(text.data() + text.size()) {}

JsonReader::~JsonReader() {
  if (file_ >= 0) ::close(file_);
}

bool JsonReader::fail(std::string_view what) {
  if (status_.ok()) {
    status_ =
        invalid_input(fmt::format("{}: byte {}: {}", name_, offset(), what));
  }
  return false;
}

bool JsonReader::refill() {
  if (file_ < 0) return false;
  base_ += static_cast<uint64_t>(end_ - begin_);
  begin_ = cursor_ = end_ = buffer_.data();
  ssize_t got;
  do {
    got = ::read(file_, buffer_.data(), buffer_.size());
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (status_.ok()) {
      status_ = io_error(fmt::format(
          "{}: byte {}: cannot read: {}", name_, base_, std::strerror(errno)));
    }
    return false;
  }
  end_ = begin_ + got;
  return got > 0;
}

int JsonReader::peek_byte() {
  if (!status_.ok()) return -1;
  if (cursor_ == end_ && !refill()) return -1;
  return static_cast<unsigned char>(*cursor_);
}

int JsonReader::peek_token() {
  int c = peek_byte();
  while (is_json_space(c)) {
    ++cursor_;
    c = peek_byte();
  }
  return c;
}

bool JsonReader::expect(char c) {
  const int got = peek_token();
  if (got == static_cast<unsigned char>(c)) {
    ++cursor_;
    return true;
  }
  if (got < 0) return fail(fmt::format("the file ends where '{}' is due", c));
  return fail(fmt::format("'{}' is due here", c));
}

JsonReader::Type JsonReader::peek() {
  switch (peek_token()) {
    case -1:
      return Type::kEnd;
    case '{':
      return Type::kObject;
    case '[':
      return Type::kArray;
    case '"':
      return Type::kString;
    case 't':
    case 'f':
      return Type::kBool;
    case 'n':
      return Type::kNull;
    default:
      return Type::kNumber;
  }
}

bool JsonReader::push_level() {
  if (fresh_.size() >= kDepthMax) return fail("nested too deeply");
  fresh_.push_back(true);
  return true;
}

bool JsonReader::begin_object() {
  return expect('{') && push_level();
}
bool JsonReader::begin_array() {
  return expect('[') && push_level();
}

bool JsonReader::comma_or(char end, bool& ended) {
  ended = false;
  if (!ok()) return false;  // the level may not even be open
  const int c = peek_token();
  if (c == end) {
    ++cursor_;
    fresh_.pop_back();
    ended = true;
    return ok();
  }
  if (!fresh_.back()) {
    if (!expect(',')) return false;
    if (peek_token() == end) return fail("a value is due after ','");
  }
  fresh_.back() = false;
  return ok();
}

bool JsonReader::next_key(std::string_view& key) {
  bool ended;
  if (!comma_or('}', ended) || ended) return false;
  if (!read_string(key)) return false;
  if (cursor_ != end_ && *cursor_ == ':') {
    ++cursor_;
    return true;
  }
  // The ':' may lie in the next buffer, which would pull the key away.
  if (key.data() != scratch_.data()) {
    scratch_.assign(key);
    key = scratch_;
  }
  return expect(':');
}

bool JsonReader::next_element() {
  bool ended;
  if (!comma_or(']', ended)) return false;
  if (!ended && peek_token() < 0) return fail("the file ends inside an array");
  return !ended;
}

bool JsonReader::read_string(std::string_view& value) {
  if (!expect('"')) return false;
  scratch_.clear();
  bool in_scratch = false;
  while (true) {
    if (peek_byte() < 0) return fail("the file ends inside a string");
    const char* p = cursor_;
    while (p != end_ && *p != '"' && *p != '\\' &&
           static_cast<unsigned char>(*p) >= 0x20) {
      ++p;
    }
    const std::string_view run(cursor_, static_cast<size_t>(p - cursor_));
    if (p != end_ && *p == '"' && !in_scratch) {
      value = run;
      cursor_ = p + 1;
      break;
    }
    scratch_.append(run);
    in_scratch = true;
    if (scratch_.size() > kStringBytesMax) return fail("string too long");
    cursor_ = p;
    if (p == end_) continue;
    if (*p == '"') {
      ++cursor_;
      value = scratch_;
      break;
    }
    if (*p != '\\') return fail("control character inside a string");
    ++cursor_;
    if (!read_escape()) return false;
  }
  if (find_invalid_utf8(value) != std::string_view::npos) {
    return fail("the string that ends here is not valid UTF-8");
  }
  return true;
}

bool JsonReader::read_escape() {
  const auto take = [&] {
    const int c = peek_byte();
    if (c >= 0) ++cursor_;
    return c;
  };
  const auto hex4 = [&](uint32_t& code) {
    code = 0;
    for (int i = 0; i < 4; ++i) {
      const int digit = hex_digit(take());
      if (digit < 0) return fail("\\u needs four hexadecimal digits");
      code = code << 4 | static_cast<uint32_t>(digit);
    }
    return true;
  };
  const int c = take();
  constexpr std::string_view kFrom = "\"\\/bfnrt";
  constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
  if (c > 0 && c != 'u') {
    const size_t at = kFrom.find(static_cast<char>(c));
    if (at == std::string_view::npos) return fail("unknown escape");
    scratch_ += kTo[at];
    return true;
  }
  if (c != 'u') return fail("the file ends inside a string");
  uint32_t code;
  if (!hex4(code)) return false;
  if (code >= 0xD800 && code < 0xDC00) {
    uint32_t low;
    if (take() != '\\' || take() != 'u') return fail("half a surrogate pair");
    if (!hex4(low)) return false;
    if (low < 0xDC00 || low > 0xDFFF) return fail("half a surrogate pair");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  } else if (code >= 0xDC00 && code <= 0xDFFF) {
    return fail("half a surrogate pair");
  }
  append_utf8(scratch_, code);
  return true;
}

// Collects a number and checks JSON's grammar of it.
bool JsonReader::read_digits(std::string& text) {
  text.clear();
  int c = peek_token();
  if (c != '-' && (c < '0' || c > '9')) return fail("a number is due here");
  while (c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E' ||
         (c >= '0' && c <= '9')) {
    if (text.size() == kNumberBytesMax) return fail("number too long");
    text += static_cast<char>(c);
    ++cursor_;
    c = peek_byte();
  }
  size_t i = text[0] == '-' ? 1 : 0;
  const auto digits = [&] {
    const size_t first = i;
    while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i;
    return i - first;
  };
  const bool zero = i < text.size() && text[i] == '0';
  const size_t whole = digits();
  bool good = whole > 0 && !(zero && whole > 1);
  if (i < text.size() && text[i] == '.') {
    ++i;
    good = digits() > 0 && good;
  }
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    good = digits() > 0 && good;
  }
  if (!good || i != text.size()) {
    return fail(fmt::format("'{}' is not a number", text));
  }
  return ok();
}

bool JsonReader::read_integer(int64_t& value) {
  std::string text;
  if (!read_digits(text)) return false;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    return fail(fmt::format("{} is not an integer of 64 bits", text));
  }
  return true;
}

bool JsonReader::read_number(double& value) {
  std::string text;
  if (!read_digits(text)) return false;
  value = std::strtod(text.c_str(), nullptr);
  if (!std::isfinite(value)) return fail("number out of range");
  return true;
}

bool JsonReader::read_literal(std::string_view word) {
  peek_token();
  for (const char expected : word) {
    if (peek_byte() != expected) {
      return fail(fmt::format("'{}' is due here", word));
    }
    ++cursor_;
  }
  return true;
}

bool JsonReader::read_bool(bool& value) {
  const int c = peek_token();
  if (c != 't' && c != 'f') return fail("true or false is due here");
  value = c == 't';
  return read_literal(value ? "true" : "false");
}

bool JsonReader::read_null() {
  return read_literal("null");
}

bool JsonReader::skip_value() {
  std::string_view text;
  double number = 0;
  bool flag = false;
  switch (peek()) {
    case Type::kObject:
      if (!begin_object()) return false;
      while (next_key(text)) {
        if (!skip_value()) return false;
      }
      return ok();
    case Type::kArray:
      if (!begin_array()) return false;
      while (next_element()) {
        if (!skip_value()) return false;
      }
      return ok();
    case Type::kString:
      return read_string(text);
    case Type::kNumber:
      return read_number(number);
    case Type::kBool:
      return read_bool(flag);
    case Type::kNull:
      return read_null();
    case Type::kEnd:
      break;
  }
  return fail("the file ends where a value is due");
}

bool JsonReader::read_value(nlohmann::json& value, size_t bytes_max) {
  return read_value_within(value, offset() + bytes_max);
}

bool JsonReader::read_value_within(nlohmann::json& value, uint64_t offset_max) {
  if (offset() > offset_max) return fail("value too large");
  std::string_view text;
  double number = 0;
  bool flag = false;
  switch (peek()) {
    case Type::kObject:
      if (!begin_object()) return false;
      value = nlohmann::json::object();
      while (next_key(text)) {
        const std::string key(text);
        if (!read_value_within(value[key], offset_max)) return false;
      }
      return ok();
    case Type::kArray:
      if (!begin_array()) return false;
      value = nlohmann::json::array();
      while (next_element()) {
        value.push_back(nullptr);
        if (!read_value_within(value.back(), offset_max)) return false;
      }
      return ok();
    case Type::kString:
      if (!read_string(text)) return false;
      value = std::string(text);
      return true;
    case Type::kNumber: {
      std::string digits;
      if (!read_digits(digits)) return false;
      int64_t integer = 0;
      const char* end = digits.data() + digits.size();
      const auto parsed = std::from_chars(digits.data(), end, integer);
      if (parsed.ec == std::errc() && parsed.ptr == end) {
        value = integer;
        return true;
      }
      number = std::strtod(digits.c_str(), nullptr);
      if (!std::isfinite(number)) return fail("number out of range");
      value = number;
      return true;
    }
    case Type::kBool:
      if (!read_bool(flag)) return false;
      value = flag;
      return true;
    case Type::kNull:
      value = nullptr;
      return read_null();
    case Type::kEnd:
      break;
  }
  return fail("the file ends where a value is due");
}

bool JsonReader::finish() {
  if (peek_token() >= 0) return fail("more text after the end of the document");
  return ok();
}

}  // namespace mlx_flash
