// SPDX-License-Identifier: MIT
#pragma once

// Reads JSON of any size as a stream, by pulling.
//
// tokenizer.json reaches 136 MB and is nearly all vocabulary: a document in
// memory would cost several times the tables made from it. The caller asks for
// what it expects (begin_object, next_key, read_string, ...); only one buffer
// and one string are in memory.
//
// Errors stick: after the first one every call returns false (or kEnd), and
// status() says file, byte offset and what was wrong. So a loop is written
// without checks, and status() is asked at its end.
//
// Thread-compatible.

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mlx_flash {

class JsonReader {
 public:
  enum class Type { kObject, kArray, kString, kNumber, kBool, kNull, kEnd };

  static Result<std::unique_ptr<JsonReader>> open(const std::string& path);

  // Reads from memory, which must outlive the reader. `name` is for messages.
  JsonReader(std::string_view text, std::string name);
  ~JsonReader();
  JsonReader(const JsonReader&) = delete;
  JsonReader& operator=(const JsonReader&) = delete;

  // Type of the value that comes next; kEnd at the end or after an error.
  Type peek();

  bool begin_object();
  // The next key, valid until the next call of anything; false at the end of
  // the object, which is then left behind.
  bool next_key(std::string_view& key);
  bool begin_array();
  bool next_element();  // false at the end of the array

  // Valid until the next call of anything. Strings are valid UTF-8.
  bool read_string(std::string_view& value);
  bool read_integer(int64_t& value);  // 3.0 and 1e3 are not integers
  bool read_number(double& value);
  bool read_bool(bool& value);
  bool read_null();
  bool skip_value();

  // The whole value as a document of at most `bytes_max` bytes of text.
  bool read_value(nlohmann::json& value, size_t bytes_max);

  // Only white space may remain.
  bool finish();

  // Makes this an error at the present offset, unless there is one already.
  bool fail(std::string_view what);

  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  uint64_t offset() const {
    return base_ + static_cast<uint64_t>(cursor_ - begin_);
  }
  const std::string& name() const { return name_; }

 private:
  explicit JsonReader(std::string name) : name_(std::move(name)) {}

  bool refill();  // false at the end of the input
  int peek_byte();
  int peek_token();  // the next byte that is not white space, or -1
  bool expect(char c);
  bool push_level();
  bool comma_or(char end, bool& ended);
  bool read_escape();
  bool read_digits(std::string& text);
  bool read_literal(std::string_view word);
  bool read_value_within(nlohmann::json& value, uint64_t offset_max);

  std::string name_;
  int file_ = -1;
  std::vector<char> buffer_;  // empty when reading from memory
  const char* begin_ = nullptr;
  const char* cursor_ = nullptr;
  const char* end_ = nullptr;
  uint64_t base_ = 0;        // offset of begin_ in the input
  std::string scratch_;      // a string with escapes, or across buffers
  std::vector<bool> fresh_;  // per open level: nothing read yet
  Status status_;
};

}  // namespace mlx_flash
