// SPDX-License-Identifier: MIT
// "..." % values, "...".format(...) and the format mini language.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

constexpr int64_t kWidthMax = 1'000'000;
constexpr int kPrecisionMax = 1000;

// One conversion, of either language.
struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '='; 0: the type decides
  char sign = '-';
  bool alternate = false;
  bool zero = false;
  int64_t width = 0;
  char grouping = 0;
  int precision = -1;
  char type = 0;
};

std::string with_printf(const char* format, int precision, double value) {
  std::array<char, 64> small{};
  const int size =
      std::snprintf(small.data(), small.size(), format, precision, value);
  if (size < 0) return "";
  std::string out(static_cast<size_t>(size), '\0');
  std::snprintf(out.data(), out.size() + 1, format, precision, value);
  return out;
}

std::string in_base(uint64_t value, unsigned base, bool upper) {
  const char* digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string out;
  do {
    out += digits[value % base];
    value /= base;
  } while (value != 0);
  std::reverse(out.begin(), out.end());
  return out;
}

std::string grouped(const std::string& digits, char separator, size_t size) {
  // Only the digits before the point or exponent are grouped.
  size_t whole = 0;
  while (whole < digits.size() &&
         std::isxdigit(static_cast<unsigned char>(digits[whole])) &&
         digits[whole] != 'e') {
    ++whole;
  }
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % size == 0) out += separator;
    out += digits[i];
  }
  return out + digits.substr(whole);
}

// Pads `sign` + `body` to the width.
std::string padded(const Spec& spec,
                   const std::string& sign,
                   const std::string& body,
                   char align) {
  const auto size =
      static_cast<int64_t>(count_code_points(sign) + count_code_points(body));
  const int64_t missing = std::max<int64_t>(spec.width - size, 0);
  const auto repeat = [&](int64_t count) {
    std::string out;
    for (int64_t i = 0; i < count; ++i) out += spec.fill;
    return out;
  };
  switch (spec.align != 0 ? spec.align : align) {
    case '<':
      return sign + body + repeat(missing);
    case '^':
      return repeat(missing / 2) + sign + body + repeat(missing - missing / 2);
    case '=':
      return sign + repeat(missing) + body;
    default:
      return repeat(missing) + sign + body;
  }
}

std::string sign_text(const Spec& spec, bool negative) {
  if (negative) return "-";
  return spec.sign == '-' ? "" : std::string(1, spec.sign);
}

std::string float_body(double value, const Spec& spec) {
  const char type = spec.type;
  const bool upper = type == 'F' || type == 'E' || type == 'G';
  if (!std::isfinite(value)) {
    std::string out = std::isnan(value) ? "nan" : "inf";
    if (upper) {
      for (char& c : out) c = static_cast<char>(c - 32);
    }
    return out + (type == '%' ? "%" : "");
  }
  const int precision = spec.precision < 0 ? 6 : spec.precision;
  switch (type) {
    case 'e':
      return with_printf(spec.alternate ? "%#.*e" : "%.*e", precision, value);
    case 'E':
      return with_printf(spec.alternate ? "%#.*E" : "%.*E", precision, value);
    case 'f':
    case 'F':
      return with_printf(spec.alternate ? "%#.*f" : "%.*f", precision, value);
    case '%':
      return with_printf("%.*f", precision, value * 100) + "%";
    case 'G':
      return with_printf(spec.alternate ? "%#.*G" : "%.*G", precision, value);
    case 0: {
      if (spec.precision < 0) return repr_float(value);
      // Like 'g', with at least one digit behind the point.
      std::string out = with_printf("%.*g", std::max(spec.precision, 1), value);
      const bool bare = out.find_first_of(".e") == std::string::npos;
      return bare ? out + ".0" : out;
    }
    default:
      return with_printf(spec.alternate ? "%#.*g" : "%.*g", precision, value);
  }
}

std::string format_float(double value, const Spec& spec) {
  const bool negative = std::signbit(value) && !std::isnan(value);
  std::string body = float_body(std::fabs(value), spec);
  if (spec.grouping != 0) body = grouped(body, spec.grouping, 3);
  const std::string sign = sign_text(spec, negative);
  if (spec.zero && spec.align == 0) {
    Spec filled = spec;
    filled.fill = std::string(1, '0');
    return padded(filled, sign, body, '=');
  }
  return padded(spec, sign, body, '>');
}

std::string format_int(int64_t value, const Spec& spec) {
  if (spec.type != 0 &&
      std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos) {
    return format_float(static_cast<double>(value), spec);
  }
  if (spec.precision >= 0) {
    fail("Precision not allowed in integer format specifier");
  }
  const bool negative = value < 0;
  const uint64_t magnitude = negative ? ~static_cast<uint64_t>(value) + 1
                                      : static_cast<uint64_t>(value);
  std::string body;
  std::string prefix;
  size_t group = 3;
  switch (spec.type) {
    case 0:
    case 'd':
    case 'n':
      body = std::to_string(magnitude);
      break;
    case 'x':
    case 'X':
      body = in_base(magnitude, 16, spec.type == 'X');
      prefix = spec.type == 'X' ? "0X" : "0x";
      group = 4;
      break;
    case 'o':
      body = in_base(magnitude, 8, false);
      prefix = "0o";
      group = 4;
      break;
    case 'b':
      body = in_base(magnitude, 2, false);
      prefix = "0b";
      group = 4;
      break;
    case 'c':
      if (negative || magnitude > 0x10FFFF ||
          (magnitude >= 0xD800 && magnitude < 0xE000)) {
        fail("%c arg not in range(0x110000)");
      }
      append_utf8(&body, static_cast<char32_t>(magnitude));
      return padded(spec, "", body, '<');
    default:
      fail(std::string("Unknown format code '") + spec.type +
           "' for object of type 'int'");
  }
  if (spec.grouping != 0) body = grouped(body, spec.grouping, group);
  std::string sign = sign_text(spec, negative);
  if (spec.alternate) sign += prefix;
  if (spec.zero && spec.align == 0) {
    Spec filled = spec;
    filled.fill = std::string(1, '0');
    return padded(filled, sign, body, '=');
  }
  return padded(spec, sign, body, '>');
}

std::string format_text(const std::string& text, const Spec& spec) {
  if (spec.type != 0 && spec.type != 's') {
    fail(std::string("Unknown format code '") + spec.type +
         "' for object of type 'str'");
  }
  if (spec.align == '=') {
    fail("'=' alignment not allowed in string format specifier");
  }
  std::string body = text;
  if (spec.precision >= 0) {
    body.resize(byte_offset(body, static_cast<size_t>(spec.precision)));
  }
  Spec used = spec;
  if (spec.zero && spec.align == 0) used.fill = std::string(1, '0');
  return padded(used, "", body, '<');
}

int64_t read_number(std::string_view text, size_t* at, bool* any) {
  int64_t out = 0;
  *any = false;
  while (*at < text.size() && text[*at] >= '0' && text[*at] <= '9') {
    out = out * 10 + (text[*at] - '0');
    if (out > kWidthMax) fail("a width or precision is too large");
    *any = true;
    ++*at;
  }
  return out;
}

// [[fill]align][sign][#][0][width][grouping][.precision][type]
Spec parse_spec(std::string_view text) {
  Spec out;
  size_t at = 0;
  const auto is_align = [&](size_t i) {
    return i < text.size() &&
           std::string_view("<>=^").find(text[i]) != std::string_view::npos;
  };
  if (!text.empty()) {
    size_t second = 0;
    next_code_point(text, &second);
    if (is_align(second)) {
      out.fill = std::string(text.substr(0, second));
      out.align = text[second];
      at = second + 1;
    } else if (is_align(0)) {
      out.align = text[0];
      at = 1;
    }
  }
  const auto take = [&](char c) {
    if (at >= text.size() || text[at] != c) return false;
    ++at;
    return true;
  };
  for (const char sign : {'+', '-', ' '}) {
    if (take(sign)) {
      out.sign = sign;
      break;
    }
  }
  out.alternate = take('#');
  out.zero = take('0');
  if (out.zero && out.align != 0 && out.fill == " " && at >= 2) {
    out.zero = false;  // an explicit alignment only takes the fill
    out.fill = text.find_first_of("<>=^") == 0 ? "0" : out.fill;
  }
  bool any = false;
  out.width = read_number(text, &at, &any);
  if (take(',')) out.grouping = ',';
  if (take('_')) out.grouping = '_';
  if (take('.')) {
    const int64_t precision = read_number(text, &at, &any);
    if (!any) fail("Format specifier missing precision");
    out.precision =
        static_cast<int>(std::min<int64_t>(precision, kPrecisionMax));
  }
  if (at < text.size()) out.type = text[at++];
  if (at < text.size()) fail("Invalid format specifier");
  return out;
}

}  // namespace

std::string fixed(double value, int precision) {
  return with_printf("%.*f", precision, value);
}

std::string format_spec(Heap& heap, const Value& value, std::string_view spec) {
  if (spec.empty()) return to_str(heap, value);
  const Spec parsed = parse_spec(spec);
  heap.check_room(static_cast<size_t>(parsed.width) * 4);
  switch (value.kind()) {
    case Kind::kBool:
      if (parsed.type == 0 || parsed.type == 's') {
        // An int with a width prints as a number.
        return format_int(value.as_bool() ? 1 : 0, parsed);
      }
      return format_int(value.as_bool() ? 1 : 0, parsed);
    case Kind::kInt:
      return format_int(value.as_int(), parsed);
    case Kind::kFloat:
      if (parsed.type != 0 && std::string_view("eEfFgGn%").find(parsed.type) ==
                                  std::string_view::npos) {
        fail(std::string("Unknown format code '") + parsed.type +
             "' for object of type 'float'");
      }
      return format_float(value.as_float(), parsed);
    case Kind::kString:
      return format_text(value.text(), parsed);
    case Kind::kUndefined:
      return format_text("", parsed);
    default:
      fail(std::string("unsupported format string passed to ") +
           type_name(value) + ".__format__");
  }
}

namespace {

// Runs over the text of a % format.
class PercentFormatter {
 public:
  PercentFormatter(Heap& heap, const std::string& format, const Value& values)
      : heap_(heap), out_(heap), format_(format), values_(values) {}

  std::string run() {
    while (at_ < format_.size()) {
      const size_t percent = format_.find('%', at_);
      if (percent == std::string::npos) break;
      out_.append(std::string_view(format_).substr(at_, percent - at_));
      at_ = percent + 1;
      conversion();
    }
    out_.append(std::string_view(format_).substr(at_));
    finish();
    return out_.take();
  }

 private:
  bool is_tuple() const { return values_.is(Kind::kTuple); }

  void finish() const {
    const bool is_mapping = values_.is(Kind::kDict) ||
                            values_.is(Kind::kList) || values_.is(Kind::kRange);
    const size_t given = is_tuple() ? values_.as<ListObject>().items.size() : 1;
    if (!used_key_ && used_ < given && !(is_mapping && !is_tuple())) {
      fail("not all arguments converted during string formatting");
    }
  }

  Value next_value() {
    if (keyed_) {
      keyed_ = false;
      return key_value_;
    }
    const size_t given = is_tuple() ? values_.as<ListObject>().items.size() : 1;
    if (used_ >= given) fail("not enough arguments for format string");
    ++used_;
    return is_tuple() ? values_.as<ListObject>().items[used_ - 1] : values_;
  }

  void read_key() {
    int depth = 1;
    const size_t begin = ++at_;
    while (at_ < format_.size() && depth > 0) {
      depth += format_[at_] == '(' ? 1 : (format_[at_] == ')' ? -1 : 0);
      ++at_;
    }
    if (depth > 0) fail("incomplete format key");
    if (!values_.is(Kind::kDict)) fail("format requires a mapping");
    const std::string key = format_.substr(begin, at_ - 1 - begin);
    const Value* found = values_.as<DictObject>().find(key);
    if (!found) fail("there is no key " + repr_text(key) + " to format");
    key_value_ = *found;
    keyed_ = true;
    used_key_ = true;
  }

  int64_t star_or_number() {
    if (at_ < format_.size() && format_[at_] == '*') {
      ++at_;
      const int64_t value = to_index(next_value(), "* ");
      if (value > kWidthMax || value < -kWidthMax) fail("width too big");
      return value;
    }
    bool any = false;
    return read_number(format_, &at_, &any);
  }

  void conversion() {
    heap_.step();
    Spec spec;
    if (at_ < format_.size() && format_[at_] == '(') read_key();
    for (; at_ < format_.size(); ++at_) {
      const char c = format_[at_];
      if (c == '-') {
        spec.align = '<';
      } else if (c == '+') {
        spec.sign = '+';
      } else if (c == ' ') {
        spec.sign = spec.sign == '+' ? '+' : ' ';
      } else if (c == '#') {
        spec.alternate = true;
      } else if (c == '0') {
        spec.zero = true;
      } else {
        break;
      }
    }
    spec.width = star_or_number();
    if (spec.width < 0) {
      spec.align = '<';
      spec.width = -spec.width;
    }
    if (at_ < format_.size() && format_[at_] == '.') {
      ++at_;
      spec.precision = static_cast<int>(
          std::clamp<int64_t>(star_or_number(), 0, kPrecisionMax));
    }
    while (
        at_ < format_.size() &&
        (format_[at_] == 'l' || format_[at_] == 'h' || format_[at_] == 'L')) {
      ++at_;
    }
    if (at_ >= format_.size()) fail("incomplete format");
    heap_.check_room(static_cast<size_t>(spec.width) * 4);
    convert(format_[at_++], spec);
  }

  void convert(char type, Spec spec) {
    switch (type) {
      case '%':
        return out_.append("%");
      case 's':
      case 'r':
      case 'a': {
        const Value value = next_value();
        Sink shown(heap_);
        if (type == 's') {
          append_str(shown, value);
        } else {
          append_repr(shown, value);
        }
        spec.zero = false;
        if (spec.align == 0) spec.align = '>';
        return out_.append(format_text(shown.take(), spec));
      }
      case 'c':
        return character(next_value(), spec);
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
        return integer(type, next_value(), spec);
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G': {
        const Value value = next_value();
        if (value.is_undefined()) fail_undefined(value);
        if (!is_number(value)) {
          fail(std::string("must be real number, not ") + type_name(value));
        }
        spec.type = type;
        return out_.append(format_float(to_double(value), spec));
      }
      default:
        fail(std::string("unsupported format character '") + type + "'");
    }
  }

  void character(const Value& value, Spec spec) {
    if (spec.align == 0) spec.align = '>';
    if (value.is(Kind::kInt)) {
      spec.type = 'c';
      return out_.append(format_int(value.as_int(), spec));
    }
    if (!value.is_string() || length(value) != 1) {
      fail("%c requires int or char");
    }
    out_.append(format_text(value.text(), spec));
  }

  void integer(char type, const Value& value, Spec spec) {
    int64_t number = 0;
    const bool is_decimal_type = type == 'd' || type == 'i' || type == 'u';
    if (value.is_undefined()) fail_undefined(value);
    if (value.is(Kind::kFloat) && is_decimal_type) {
      const double whole = std::trunc(value.as_float());
      if (!(std::fabs(whole) < 9.2e18)) {
        fail("an integer does not fit in 64 bits");
      }
      number = static_cast<int64_t>(whole);
    } else if (value.is(Kind::kInt) || value.is(Kind::kBool)) {
      number =
          value.is(Kind::kInt) ? value.as_int() : (value.as_bool() ? 1 : 0);
    } else {
      fail(std::string("%") + type +
           " format: a real number is required, not " + type_name(value));
    }
    spec.type = is_decimal_type ? 'd' : type;
    const int digits = spec.precision;
    spec.precision = -1;
    if (digits >= 0) {
      // A precision is the least number of digits.
      Spec bare;
      bare.type = spec.type;
      std::string body = format_int(number, bare);
      const bool negative = body[0] == '-';
      if (negative) body.erase(0, 1);
      if (body.size() < static_cast<size_t>(digits)) {
        body.insert(0, static_cast<size_t>(digits) - body.size(), '0');
      }
      return out_.append(padded(spec, sign_text(spec, negative), body, '>'));
    }
    out_.append(format_int(number, spec));
  }

  Heap& heap_;
  Sink out_;
  const std::string& format_;
  const Value& values_;
  size_t at_ = 0;
  size_t used_ = 0;
  bool keyed_ = false;
  bool used_key_ = false;
  Value key_value_;
};

}  // namespace

Value format_percent(Heap& heap, const Value& format, const Value& values) {
  return make_string(heap, PercentFormatter(heap, format.text(), values).run());
}

}  // namespace mlx_flash::jinja
