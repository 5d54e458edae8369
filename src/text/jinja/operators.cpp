// SPDX-License-Identifier: MIT
#include "text/jinja/operators.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace mlx_flash::jinja {
namespace {

constexpr double kTwo63 = 9223372036854775808.0;

bool is_integral(const Value& v) {
  return v.is(Kind::kInt) || v.is(Kind::kBool);
}

int64_t int_of(const Value& v) {
  return v.is(Kind::kBool) ? (v.as_bool() ? 1 : 0) : v.as_int();
}

// -1, 0, 1, or 2 when not comparable (NaN).
int compare_numbers(const Value& left, const Value& right) {
  if (is_integral(left) && is_integral(right)) {
    const int64_t a = int_of(left);
    const int64_t b = int_of(right);
    return a < b ? -1 : (a > b ? 1 : 0);
  }
  const double a = to_double(left);
  const double b = to_double(right);
  if (std::isnan(a) || std::isnan(b)) return 2;
  return a < b ? -1 : (a > b ? 1 : 0);
}

bool equal_items(Heap& heap, const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equals(heap, a[i], b[i])) return false;
  }
  return true;
}

bool equal_dicts(Heap& heap, const DictObject& a, const DictObject& b) {
  if (a.size() != b.size()) return false;
  for (const auto& entry : a.entries()) {
    const Value* other = b.find(entry.key);
    if (!other || !equals(heap, entry.value, *other)) return false;
  }
  return true;
}

bool equal_ranges(const RangeObject& a, const RangeObject& b) {
  if (a.size() != b.size()) return false;
  if (a.size() == 0) return true;
  if (a.start != b.start) return false;
  return a.size() == 1 || a.step == b.step;
}

[[noreturn]] void fail_order(const Value& left,
                             const Value& right,
                             const char* symbol) {
  fail(std::string("'") + symbol + "' not supported between instances of '" +
       type_name(left) + "' and '" + type_name(right) + "'");
}

// -1, 0, 1, or 2 for unordered numbers.
int compare(Heap& heap,
            const Value& left,
            const Value& right,
            const char* symbol) {
  heap.step();
  if (is_number(left) && is_number(right)) return compare_numbers(left, right);
  if (left.is_string() && right.is_string()) {
    heap.step_bytes(std::min(left.text().size(), right.text().size()));
    const int order = left.text().compare(right.text());
    return order < 0 ? -1 : (order > 0 ? 1 : 0);
  }
  if (left.kind() == right.kind() &&
      (left.is(Kind::kList) || left.is(Kind::kTuple))) {
    const Values& a = left.as<ListObject>().items;
    const Values& b = right.as<ListObject>().items;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
      if (!equals(heap, a[i], b[i])) return compare(heap, a[i], b[i], symbol);
    }
    return a.size() < b.size() ? -1 : (a.size() > b.size() ? 1 : 0);
  }
  fail_order(left, right, symbol);
}

[[noreturn]] void fail_overflow() {
  fail("an integer does not fit in 64 bits");
}

[[noreturn]] void fail_operands(const char* symbol,
                                const Value& left,
                                const Value& right) {
  fail(std::string("unsupported operand type(s) for ") + symbol + ": '" +
       type_name(left) + "' and '" + type_name(right) + "'");
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (a == std::numeric_limits<int64_t>::min() && b == -1) fail_overflow();
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

int64_t floor_modulo(int64_t a, int64_t b) {
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

double float_modulo(double a, double b) {
  double rest = std::fmod(a, b);
  if (rest != 0) {
    if ((b < 0) != (rest < 0)) rest += b;
  } else {
    rest = std::copysign(0.0, b);
  }
  return rest;
}

double float_floor_divide(double a, double b) {
  const double quotient = (a - float_modulo(a, b)) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1.0 : floored;
}

Value int_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) fail("0.0 cannot be raised to a negative power");
    return Value::real(
        std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  for (;;) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) {
      fail_overflow();
    }
    exponent >>= 1;
    if (exponent == 0) return Value::integer(result);
    if (__builtin_mul_overflow(base, base, &base)) {
      // 0, 1 and -1 never overflow, so the next factor certainly does.
      fail_overflow();
    }
  }
}

Value int_binary(BinaryOp op, int64_t a, int64_t b) {
  int64_t out = 0;
  switch (op) {
    case BinaryOp::kAdd:
      if (__builtin_add_overflow(a, b, &out)) fail_overflow();
      return Value::integer(out);
    case BinaryOp::kSub:
      if (__builtin_sub_overflow(a, b, &out)) fail_overflow();
      return Value::integer(out);
    case BinaryOp::kMul:
      if (__builtin_mul_overflow(a, b, &out)) fail_overflow();
      return Value::integer(out);
    case BinaryOp::kDiv:
      if (b == 0) fail("division by zero");
      return Value::real(static_cast<double>(a) / static_cast<double>(b));
    case BinaryOp::kFloorDiv:
      if (b == 0) fail("integer division or modulo by zero");
      return Value::integer(floor_divide(a, b));
    case BinaryOp::kMod:
      if (b == 0) fail("integer modulo by zero");
      return Value::integer(floor_modulo(a, b));
    case BinaryOp::kPow:
      return int_power(a, b);
  }
  return Value::none();
}

Value float_power(double a, double b) {
  if (a == 0 && b < 0) fail("0.0 cannot be raised to a negative power");
  const double out = std::pow(a, b);
  if (std::isnan(out) && !std::isnan(a) && !std::isnan(b)) {
    fail("complex numbers are not supported");
  }
  if (std::isinf(out) && std::isfinite(a) && std::isfinite(b)) {
    fail("(34, 'Numerical result out of range')");
  }
  return Value::real(out);
}

Value float_binary(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::real(a + b);
    case BinaryOp::kSub:
      return Value::real(a - b);
    case BinaryOp::kMul:
      return Value::real(a * b);
    case BinaryOp::kDiv:
      if (b == 0) fail("float division by zero");
      return Value::real(a / b);
    case BinaryOp::kFloorDiv:
      if (b == 0) fail("float floor division by zero");
      return Value::real(float_floor_divide(a, b));
    case BinaryOp::kMod:
      if (b == 0) fail("float modulo");
      return Value::real(float_modulo(a, b));
    case BinaryOp::kPow:
      return float_power(a, b);
  }
  return Value::none();
}

std::string escaped_unless_markup(Heap& heap, const Value& value);

Value add_sequences(Heap& heap, const Value& left, const Value& right) {
  if (left.is_string() && right.is_string()) {
    heap.check_room(left.text().size() + right.text().size());
    if (is_markup(left) || is_markup(right)) {
      return make_markup(heap,
                         escaped_unless_markup(heap, left) +
                             escaped_unless_markup(heap, right));
    }
    std::string text;
    text.reserve(left.text().size() + right.text().size());
    text.append(left.text()).append(right.text());
    return make_string(heap, std::move(text));
  }
  const Values& a = left.as<ListObject>().items;
  const Values& b = right.as<ListObject>().items;
  heap.check_room((a.size() + b.size()) * sizeof(Value));
  Values items;
  items.reserve(a.size() + b.size());
  items.insert(items.end(), a.begin(), a.end());
  items.insert(items.end(), b.begin(), b.end());
  return left.is(Kind::kList) ? make_list(heap, std::move(items))
                              : make_tuple(heap, std::move(items));
}

Value repeat(Heap& heap, const Value& sequence, int64_t times) {
  const size_t count = times > 0 ? static_cast<size_t>(times) : 0;
  const size_t unit = sequence.is_string()
                          ? sequence.text().size()
                          : sequence.as<ListObject>().items.size();
  const size_t unit_bytes = unit * (sequence.is_string() ? 1 : sizeof(Value));
  size_t bytes = 0;
  if (__builtin_mul_overflow(unit_bytes, count, &bytes)) bytes = SIZE_MAX / 2;
  heap.check_room(bytes);
  if (sequence.is_string()) {
    std::string text;
    text.reserve(unit * count);
    for (size_t i = 0; unit > 0 && i < count; ++i) text += sequence.text();
    return is_markup(sequence) ? make_markup(heap, std::move(text))
                               : make_string(heap, std::move(text));
  }
  Values items;
  items.reserve(unit * count);
  const Values& source = sequence.as<ListObject>().items;
  for (size_t i = 0; unit > 0 && i < count; ++i) {
    items.insert(items.end(), source.begin(), source.end());
  }
  return sequence.is(Kind::kList) ? make_list(heap, std::move(items))
                                  : make_tuple(heap, std::move(items));
}

bool is_sequence(const Value& v) {
  return v.is_string() || v.is(Kind::kList) || v.is(Kind::kTuple);
}

std::string escaped_unless_markup(Heap& heap, const Value& value) {
  heap.step_bytes(value.text().size());
  if (is_markup(value)) return value.text();
  std::string out;
  for (const char c : value.text()) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

const char* symbol_of(BinaryOp op) {
  static constexpr const char* kSymbols[] = {
      "+", "-", "*", "/", "//", "%", "** or pow()"};
  return kSymbols[static_cast<size_t>(op)];
}

}  // namespace

const char* type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
    case Kind::kBigInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return is_markup(value) ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kDictView:
      switch (value.as<DictViewObject>().part) {
        case DictViewObject::Part::kKeys:
          return "dict_keys";
        case DictViewObject::Part::kValues:
          return "dict_values";
        case DictViewObject::Part::kItems:
          return "dict_items";
      }
      return "dict_items";
    case Kind::kRange:
      return "range";
    case Kind::kIterator:
      return value.as<IteratorObject>().type_name;
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kMacro:
      return "Macro";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kFunction:
      return "function";
    case Kind::kCycler:
      return "Cycler";
    case Kind::kJoiner:
      return "Joiner";
  }
  return "object";
}

bool is_number(const Value& value) {
  return is_integral(value) || value.is(Kind::kFloat);
}

double to_double(const Value& value) {
  return value.is(Kind::kFloat) ? value.as_float()
                                : static_cast<double>(int_of(value));
}

bool is_true(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.as_bool();
    case Kind::kInt:
      return value.as_int() != 0;
    case Kind::kFloat:
      return value.as_float() != 0;
    default: {
      const int64_t size = length_or_none(value);
      return size != 0;  // what has no length is true
    }
  }
}

size_t hash_text(std::string_view text) {
  return std::hash<std::string_view>()(text);
}

size_t hash_value(Heap& heap, const Value& value) {
  heap.step();
  switch (value.kind()) {
    case Kind::kBool:
    case Kind::kInt:
      return std::hash<int64_t>()(int_of(value));
    case Kind::kFloat: {
      const double v = value.as_float();
      if (std::floor(v) == v && v >= -kTwo63 && v < kTwo63) {
        return std::hash<int64_t>()(static_cast<int64_t>(v));
      }
      return std::hash<double>()(v);
    }
    case Kind::kString:
      heap.step_bytes(value.text().size());
      return hash_text(value.text());
    case Kind::kBigInt:
      return hash_text(value.as<StringObject>().text);
    case Kind::kTuple: {
      size_t out = 0x345678;
      for (const Value& item : value.as<ListObject>().items) {
        out = out * 1000003 + hash_value(heap, item);
      }
      return out;
    }
    case Kind::kList:
    case Kind::kDict:
      fail(std::string("unhashable type: '") + type_name(value) + "'");
    case Kind::kUndefined:
    case Kind::kNone:
      return static_cast<size_t>(value.kind()) + 0x5bd1e995;
    default:
      return std::hash<Object*>()(value.object());
  }
}

bool equals(Heap& heap, const Value& left, const Value& right) {
  heap.step();
  if (is_number(left) && is_number(right)) {
    return compare_numbers(left, right) == 0;
  }
  if (left.kind() != right.kind()) return false;
  switch (left.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      if (left.text().size() != right.text().size()) return false;
      heap.step_bytes(left.text().size());
      return left.text() == right.text();
    case Kind::kBigInt:
      return left.as<StringObject>().text == right.as<StringObject>().text;
    case Kind::kList:
    case Kind::kTuple:
      return left.object() == right.object() ||
             equal_items(heap,
                         left.as<ListObject>().items,
                         right.as<ListObject>().items);
    case Kind::kDict:
      return left.object() == right.object() ||
             equal_dicts(heap, left.as<DictObject>(), right.as<DictObject>());
    case Kind::kRange:
      return equal_ranges(left.as<RangeObject>(), right.as<RangeObject>());
    default:
      return left.object() == right.object();
  }
}

bool ordered(Heap& heap,
             const Value& left,
             const Value& right,
             const char* symbol) {
  for (const Value* value : {&left, &right}) {
    if (value->is_undefined()) {
      fail(value->object() ? value->as<UndefinedObject>().message
                           : "the value is undefined");
    }
  }
  const int order = compare(heap, left, right, symbol);
  if (order == 2) return false;
  const bool or_equal = symbol[1] == '=';
  if (order == 0) return or_equal;
  return symbol[0] == '<' ? order < 0 : order > 0;
}

bool is_same(const Value& left, const Value& right) {
  if (left.kind() != right.kind()) return false;
  switch (left.kind()) {
    case Kind::kNone:
      return true;
    case Kind::kBool:
      return left.as_bool() == right.as_bool();
    case Kind::kInt:
      return left.as_int() == right.as_int();
    case Kind::kFloat:
      return false;
    default:
      return left.object() == right.object() && left.object() != nullptr;
  }
}

Value binary(Heap& heap, BinaryOp op, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right}) {
    // "%" on a text takes an undefined value as an argument to print.
    if (value->is_undefined() &&
        !(op == BinaryOp::kMod && value == &right && left.is_string())) {
      fail(value->object() ? value->as<UndefinedObject>().message
                           : "the value is undefined");
    }
  }
  if (is_integral(left) && is_integral(right)) {
    return int_binary(op, int_of(left), int_of(right));
  }
  if (is_number(left) && is_number(right)) {
    return float_binary(op, to_double(left), to_double(right));
  }
  if (op == BinaryOp::kMod && left.is_string()) {
    return format_percent(heap, left, right);
  }
  if (op == BinaryOp::kAdd && is_sequence(left)) {
    if (left.kind() == right.kind()) return add_sequences(heap, left, right);
    if (left.is_string()) {
      fail(std::string("can only concatenate str (not \"") + type_name(right) +
           "\") to str");
    }
    fail(std::string("can only concatenate ") + type_name(left) + " (not \"" +
         type_name(right) + "\") to " + type_name(left));
  }
  if (op == BinaryOp::kMul) {
    if (is_sequence(left) && is_integral(right)) {
      return repeat(heap, left, int_of(right));
    }
    if (is_integral(left) && is_sequence(right)) {
      return repeat(heap, right, int_of(left));
    }
  }
  if (left.is(Kind::kBigInt) || right.is(Kind::kBigInt)) fail_overflow();
  fail_operands(symbol_of(op), left, right);
}

Value negate(Heap& heap, const Value& value) {
  if (value.is(Kind::kFloat)) return Value::real(-value.as_float());
  if (is_integral(value)) {
    int64_t out = 0;
    if (__builtin_sub_overflow(int64_t{0}, int_of(value), &out)) {
      fail_overflow();
    }
    return Value::integer(out);
  }
  if (value.is(Kind::kBigInt)) {
    const std::string& digits = value.as<StringObject>().text;
    if (digits == "9223372036854775808") {
      return Value::integer(std::numeric_limits<int64_t>::min());
    }
    return make_big_int(heap,
                        digits[0] == '-' ? digits.substr(1) : "-" + digits);
  }
  if (value.is_undefined() && value.object()) {
    fail(value.as<UndefinedObject>().message);
  }
  fail(std::string("bad operand type for unary -: '") + type_name(value) + "'");
}

Value plus(Heap& heap, const Value& value) {
  static_cast<void>(heap);
  if (is_integral(value)) return Value::integer(int_of(value));
  if (value.is(Kind::kFloat) || value.is(Kind::kBigInt)) return value;
  if (value.is_undefined() && value.object()) {
    fail(value.as<UndefinedObject>().message);
  }
  fail(std::string("bad operand type for unary +: '") + type_name(value) + "'");
}

int64_t to_index(const Value& value, const char* what) {
  if (is_integral(value)) return int_of(value);
  fail(std::string(what) + " must be an integer, not '" + type_name(value) +
       "'");
}

}  // namespace mlx_flash::jinja
