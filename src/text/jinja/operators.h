// SPDX-License-Identifier: MIT
#pragma once

// What Python's operators and protocols do with values. Every function charges
// the heap for work and memory, and fails with Python's message.

#include <cstdint>
#include <string>
#include <string_view>

#include "text/jinja/objects.h"

namespace mlx_flash::jinja {

// Python's name of the type, for messages ("str", "dict", "NoneType").
const char* type_name(const Value& value);

bool is_true(const Value& value);
bool is_number(const Value& value);  // bool, int, float
// The value as a double. REQUIRES: is_number()
double to_double(const Value& value);

size_t hash_text(std::string_view text);
// Fails on lists and dicts: they are unhashable.
size_t hash_value(Heap& heap, const Value& value);

// ==, with numbers compared by value.
bool equals(Heap& heap, const Value& left, const Value& right);
// <, <=, > or >= as `symbol`; fails when Python cannot order the two.
bool ordered(Heap& heap,
             const Value& left,
             const Value& right,
             const char* symbol);
// `item in container`.
bool contains(Heap& heap, const Value& container, const Value& item);
// `is`: the same object, or the same small value.
bool is_same(const Value& left, const Value& right);

enum class BinaryOp { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
Value binary(Heap& heap, BinaryOp op, const Value& left, const Value& right);
Value negate(Heap& heap, const Value& value);
Value plus(Heap& heap, const Value& value);

// The length, or -1 for a value without one.
int64_t length_or_none(const Value& value);
int64_t length(const Value& value);  // fails with Python's message

// An int from an argument (bool and int); `what` names it in the message.
int64_t to_index(const Value& value, const char* what);

// Characters, elements, keys, ... one at a time. Holds the value it reads.
class Iteration {
 public:
  // Fails when `value` cannot be iterated.
  Iteration(Heap& heap, Value value);
  bool next(Value* item);
  static bool possible(const Value& value);
  uint32_t depth() const { return value_.depth(); }

 private:
  Heap* heap_;
  Value value_;
  size_t at_ = 0;
};

Values to_values(Heap& heap, const Value& value);  // list(value)

// value[start:stop:step]; None or undefined bounds are absent ones.
Value slice(Heap& heap,
            const Value& value,
            const Value& start,
            const Value& stop,
            const Value& step);
// value[index] of a sequence; false when out of range.
bool element(Heap& heap, const Value& value, int64_t index, Value* out);

// Text in the making. Fails at the heap's limits while it grows.
class Sink {
 public:
  explicit Sink(Heap& heap) : heap_(&heap) {}
  void append(std::string_view text);
  void append(size_t count, char c);
  Heap& heap() const { return *heap_; }
  std::string take() { return std::move(text_); }

 private:
  Heap* heap_;
  std::string text_;
};

// str(value) and repr(value).
std::string to_str(Heap& heap, const Value& value);
void append_str(Sink& out, const Value& value);
void append_repr(Sink& out, const Value& value);
std::string repr_text(std::string_view text);
std::string repr_float(double value);

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool has_indent = false;
  std::string indent;  // of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
// json.dumps
std::string to_json(Heap& heap, const Value& value, const JsonStyle& style);

// `format % values`
Value format_percent(Heap& heap, const Value& format, const Value& values);
// format(value, spec)
std::string format_spec(Heap& heap, const Value& value, std::string_view spec);
// "%.{precision}f" without a limit on the digits of `value`
std::string fixed(double value, int precision);

}  // namespace mlx_flash::jinja
