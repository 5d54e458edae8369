// SPDX-License-Identifier: MIT
#pragma once

// JSON from a ByteReader into nlohmann's event parser, for headers too large
// for a document in memory.

#include <cstddef>
#include <iterator>

#include "base/status.h"
#include "checkpoint/byte_source.h"

namespace mlx_flash {

// Feeds the JSON parser from a ByteReader, and stops it before one token grows
// without bound (the parser would hold all of it).
class JsonFeed {
 public:
  static constexpr size_t kStringBytesMax = size_t{1} << 20;
  static constexpr size_t kTokenBytesMax = 64;  // numbers and words

  explicit JsonFeed(ByteReader& reader) : reader_(&reader) { advance(); }

  bool at_end() const { return at_end_; }
  char current() const { return current_; }
  uint64_t position() const { return reader_->position(); }
  bool token_too_long() const { return token_too_long_; }
  const Status& error() const { return reader_->error(); }

  void advance() {
    const int byte = reader_->next();
    if (byte < 0 || !count(static_cast<char>(byte))) {
      at_end_ = true;
      return;
    }
    current_ = static_cast<char>(byte);
  }

 private:
  static bool ends_token(char c) {
    switch (c) {
      case ' ':
      case '\t':
      case '\r':
      case '\n':
      case ',':
      case ':':
      case '[':
      case ']':
      case '{':
      case '}':
        return true;
      default:
        return false;
    }
  }

  bool count(char c) {
    ++token_bytes_;
    if (in_string_) {
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        in_string_ = false;
        token_bytes_ = 0;
      }
      token_too_long_ = token_bytes_ > kStringBytesMax;
      return !token_too_long_;
    }
    in_string_ = c == '"';
    if (in_string_ || ends_token(c)) token_bytes_ = 0;
    token_too_long_ = token_bytes_ > kTokenBytesMax;
    return !token_too_long_;
  }

  ByteReader* reader_;
  char current_ = 0;
  bool at_end_ = false;
  bool in_string_ = false;
  bool escaped_ = false;
  bool token_too_long_ = false;
  size_t token_bytes_ = 0;
};

struct FeedIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  JsonFeed* feed = nullptr;  // null: the end

  char operator*() const { return feed->current(); }
  FeedIterator& operator++() {
    feed->advance();
    return *this;
  }
  bool operator==(const FeedIterator& other) const {
    return done() == other.done();
  }
  bool operator!=(const FeedIterator& other) const { return !(*this == other); }
  bool done() const { return feed == nullptr || feed->at_end(); }
};

}  // namespace mlx_flash
