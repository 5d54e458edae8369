// SPDX-License-Identifier: MIT
// Filters that work on any value: numbers, defaults, JSON.
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <iterator>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

constexpr double kTwo63 = 9223372036854775808.0;

Value default_filter(Interpreter& in, const Value& self, const Bound& args) {
  const bool replaced =
      self.is_undefined() || (args.truth(1) && !is_true(self));
  if (!replaced) return self;
  return args.has(0) ? args.at(0) : in.text("");
}

// Removes white space around and "_" between digits, as int() and float() do.
// False when an underscore stands anywhere else.
bool number_digits(std::string_view text, std::string* out) {
  text = strip_left(strip_right(text));
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      *out += text[i];
      continue;
    }
    const auto is_part = [&](size_t at) {
      return at < text.size() &&
             std::isalnum(static_cast<unsigned char>(text[at]));
    };
    if (i == 0 || !is_part(i - 1) || !is_part(i + 1)) return false;
  }
  return !out->empty();
}

bool parse_int(Interpreter& in,
               std::string_view text,
               int64_t base,
               Value* out) {
  std::string digits;
  if (!number_digits(text, &digits)) return false;
  std::string_view rest = digits;
  const bool negative = rest[0] == '-';
  if (rest[0] == '-' || rest[0] == '+') rest.remove_prefix(1);
  if (rest.size() > 2 && rest[0] == '0') {
    const int marker = rest[1] | 0x20;
    const int64_t named =
        marker == 'x' ? 16 : (marker == 'o' ? 8 : (marker == 'b' ? 2 : 0));
    if (named != 0 && (base == named || base == 0)) {
      rest.remove_prefix(2);
      base = named;
    }
  }
  if (base == 0) base = 10;
  if (rest.empty() || base < 2 || base > 36) return false;
  uint64_t value = 0;
  const auto result = std::from_chars(
      rest.data(), rest.data() + rest.size(), value, static_cast<int>(base));
  if (result.ptr != rest.data() + rest.size()) return false;
  if (result.ec == std::errc::invalid_argument) return false;
  if (result.ec == std::errc() &&
      value <= (uint64_t{1} << 63) - (negative ? 0 : 1)) {
    *out = Value::integer(static_cast<int64_t>(negative ? ~value + 1 : value));
    return true;
  }
  if (base != 10) fail("an integer does not fit in 64 bits");
  const size_t zeros = std::min(rest.find_first_not_of('0'), rest.size());
  std::string digits_only(negative ? "-" : "");
  digits_only.append(rest.substr(zeros));
  *out = make_big_int(in.heap(), std::move(digits_only));
  return true;
}

bool parse_float(std::string_view text, double* out) {
  std::string digits;
  if (!number_digits(text, &digits)) return false;
  // strtod also reads hexadecimal and nan(...), which Python does not.
  for (const char c : digits) {
    if (c == 'x' || c == 'X' || c == '(') return false;
  }
  char* end = nullptr;
  *out = std::strtod(digits.c_str(), &end);
  return end == digits.c_str() + digits.size();
}

bool float_to_int(Interpreter& in, double value, Value* out) {
  if (!std::isfinite(value)) return false;
  const double whole = std::trunc(value);
  if (whole >= -kTwo63 && whole < kTwo63) {
    *out = Value::integer(static_cast<int64_t>(whole));
  } else {
    *out = make_big_int(in.heap(), fixed(whole, 0));
  }
  return true;
}

Value int_filter(Interpreter& in, const Value& self, const Bound& args) {
  if (self.is_undefined()) fail_undefined(self);
  const int64_t base = args.has(1) ? to_index(args.at(1), "base") : 10;
  Value out;
  double number = 0;
  switch (self.kind()) {
    case Kind::kInt:
    case Kind::kBigInt:
      return self;
    case Kind::kBool:
      return Value::integer(self.as_bool() ? 1 : 0);
    case Kind::kFloat:
      if (float_to_int(in, self.as_float(), &out)) return out;
      if (std::isinf(self.as_float())) {
        fail("cannot convert float infinity to integer");
      }
      break;
    case Kind::kString:
      if (parse_int(in, self.text(), base, &out)) return out;
      if (parse_float(self.text(), &number) && float_to_int(in, number, &out)) {
        return out;
      }
      break;
    default:
      break;
  }
  return args.has(0) ? args.at(0) : Value::integer(0);
}

Value float_filter(Interpreter&, const Value& self, const Bound& args) {
  if (self.is_undefined()) fail_undefined(self);
  if (is_number(self)) return Value::real(to_double(self));
  double number = 0;
  if (self.is_string() && parse_float(self.text(), &number)) {
    return Value::real(number);
  }
  if (self.is(Kind::kBigInt)) {
    return Value::real(
        std::strtod(self.as<StringObject>().text.c_str(), nullptr));
  }
  return args.has(0) ? args.at(0) : Value::real(0);
}

Value abs_filter(Interpreter& in, const Value& self, const Bound&) {
  if (self.is(Kind::kFloat)) return Value::real(std::fabs(self.as_float()));
  if (is_number(self)) {
    return to_double(self) < 0 ? negate(in.heap(), self)
                               : plus(in.heap(), self);
  }
  fail(std::string("bad operand type for abs(): '") + type_name(self) + "'");
}

// round() to `digits` decimals: half to even, on the exact value.
double round_float(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits >= 0) {
    return std::strtod(fixed(value, static_cast<int>(digits)).c_str(), nullptr);
  }
  const double scale = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(value / scale) * scale;
}

Value round_int(int64_t value, int64_t digits) {
  if (digits >= 0) return Value::integer(value);
  if (digits < -18) return Value::integer(0);
  int64_t scale = 1;
  for (int64_t i = 0; i < -digits; ++i) scale *= 10;
  const int64_t rest = ((value % scale) + scale) % scale;
  const int64_t low = value - rest;
  const int64_t twice =
      rest >= scale - rest ? (rest > scale - rest ? 1 : 0) : -1;
  const bool up = twice > 0 || (twice == 0 && (low / scale) % 2 != 0);
  return Value::integer(up ? low + scale : low);
}

Value round_filter(Interpreter& in, const Value& self, const Bound& args) {
  const std::string method = args.has(1) ? str_of(in, args.at(1)) : "common";
  const int64_t digits = args.has(0) ? to_index(args.at(0), "precision") : 0;
  if (method != "common" && method != "ceil" && method != "floor") {
    fail("method must be common, ceil or floor");
  }
  if (self.is_undefined()) fail_undefined(self);
  if (!is_number(self)) {
    fail(std::string("type ") + type_name(self) +
         " doesn't define __round__ method");
  }
  if (method == "common") {
    if (!self.is(Kind::kFloat)) {
      return round_int(static_cast<int64_t>(plus(in.heap(), self).as_int()),
                       digits);
    }
    return Value::real(round_float(self.as_float(), digits));
  }
  const double scale = std::pow(10.0, static_cast<double>(digits));
  const double scaled = to_double(self) * scale;
  if (!std::isfinite(scaled)) fail("cannot convert float infinity to integer");
  return Value::real(
      (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

void set_indent(JsonStyle* style, const Value& indent, Heap& heap) {
  if (indent.is_none()) return;
  style->has_indent = true;
  style->item_separator = ",";
  if (indent.is_string()) {
    style->indent = indent.text();
    return;
  }
  const int64_t width = to_index(indent, "indent");
  if (width <= 0) return;
  heap.check_room(static_cast<size_t>(width));
  style->indent = std::string(static_cast<size_t>(width), ' ');
}

Value tojson(Interpreter& in, const Value& self, const Bound& args) {
  JsonStyle style;
  style.ensure_ascii = args.truth(0);
  if (args.has(1)) set_indent(&style, args.at(1), in.heap());
  if (!args.is_none(2)) {
    const Values parts = to_values(in.heap(), args.at(2));
    if (parts.size() != 2 || !parts[0].is_string() || !parts[1].is_string()) {
      fail("tojson: separators must be two strings");
    }
    style.item_separator = parts[0].text();
    style.key_separator = parts[1].text();
  }
  style.sort_keys = args.truth(3);
  return in.text(to_json(in.heap(), self, style));
}

Value attr(Interpreter& in, const Value& self, const Bound& args) {
  const std::string name = str_of(in, args.at(0));
  if (self.is_undefined()) fail_undefined(self);
  // Only attributes: no falling back to an item of a dict.
  if (self.is(Kind::kDict) && !find_method(self, name)) {
    return make_undefined(in.heap(),
                          "'dict object' has no attribute '" + name + "'");
  }
  return in.get_attribute(self, name);
}

Value filesizeformat(Interpreter& in, const Value& self, const Bound& args) {
  static constexpr const char* kDecimal[] = {
      "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
  static constexpr const char* kBinary[] = {
      "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"};
  double bytes = 0;
  if (is_number(self)) {
    bytes = to_double(self);
  } else if (!self.is_string() || !parse_float(self.text(), &bytes)) {
    fail("filesizeformat needs a number");
  }
  const bool binary = args.truth(0);
  const double base = binary ? 1024 : 1000;
  if (bytes == 1) return in.text("1 Byte");
  if (bytes < base) {
    return in.text(fixed(std::trunc(bytes), 0) + " Bytes");
  }
  double unit = base;
  const char* prefix = "";
  for (size_t i = 0; i < std::size(kDecimal); ++i) {
    unit *= base;
    prefix = binary ? kBinary[i] : kDecimal[i];
    if (bytes < unit) break;
  }
  return in.text(fixed(base * bytes / unit, 1) + " " + prefix);
}

// Like repr, with the keys of dicts sorted. Long values are not broken into
// lines as Python's pformat does.
Value pprint(Interpreter& in, const Value& self, const Bound&) {
  Sink out(in.heap());
  append_repr(out, self);
  return in.text(out.take());
}

constexpr Builtin kFilters[] = {
    {"default", "default_value,boolean", 0, default_filter},
    {"d", "default_value,boolean", 0, default_filter},
    {"int", "default,base", 0, int_filter},
    {"float", "default", 0, float_filter},
    {"abs", "", 0, abs_filter},
    {"round", "precision,method", 0, round_filter},
    {"tojson", "ensure_ascii,indent,separators,sort_keys", 0, tojson},
    {"attr", "name", 1, attr},
    {"filesizeformat", "binary", 0, filesizeformat},
    {"pprint", "", 0, pprint},
};

}  // namespace

BuiltinTable value_filters() {
  return {kFilters, std::size(kFilters)};
}

}  // namespace mlx_flash::jinja
