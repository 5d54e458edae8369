// SPDX-License-Identifier: MIT
// Methods of str that change or classify text.
#include <algorithm>
#include <iterator>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

// A result of the same type as `self`: str or Markup.
Value same_type(Interpreter& in, const Value& self, std::string out) {
  return is_markup(self) ? make_markup(in.heap(), std::move(out))
                         : in.text(std::move(out));
}

Value map_text(Interpreter& in,
               const Value& self,
               std::string (*function)(std::string_view)) {
  in.heap().step(self.text().size() / 8);
  in.heap().check_room(self.text().size() * 3);
  return same_type(in, self, function(self.text()));
}

Value upper(Interpreter& in, const Value& self, const Bound&) {
  return map_text(in, self, to_upper);
}
Value lower(Interpreter& in, const Value& self, const Bound&) {
  return map_text(in, self, to_lower);
}
Value title(Interpreter& in, const Value& self, const Bound&) {
  return map_text(in, self, to_title);
}
Value capitalize_method(Interpreter& in, const Value& self, const Bound&) {
  return map_text(in, self, capitalize);
}
Value swapcase(Interpreter& in, const Value& self, const Bound&) {
  return map_text(in, self, swap_case);
}
Value casefold(Interpreter& in, const Value& self, const Bound&) {
  return map_text(in, self, fold_case);
}

const std::string& text_argument(const Bound& args,
                                 size_t i,
                                 const char* what) {
  if (!args.at(i).is_string()) {
    fail(std::string(what) + " must be str, not " + type_name(args.at(i)));
  }
  return args.at(i).text();
}

Value strip_both(Interpreter& in,
                 const Value& self,
                 const Bound& args,
                 bool left,
                 bool right) {
  std::string_view text = self.text();
  if (args.is_none(0)) {
    if (left) text = strip_left(text);
    if (right) text = strip_right(text);
  } else {
    const std::string& chars = text_argument(args, 0, "strip arg");
    in.heap().step(std::min(text.size(), size_t{1} << 20) * chars.size() / 32);
    if (left) text = strip_left(text, chars);
    if (right) text = strip_right(text, chars);
  }
  if (text.size() == self.text().size()) return self;
  return same_type(in, self, std::string(text));
}

Value strip(Interpreter& in, const Value& self, const Bound& args) {
  return strip_both(in, self, args, true, true);
}
Value lstrip(Interpreter& in, const Value& self, const Bound& args) {
  return strip_both(in, self, args, true, false);
}
Value rstrip(Interpreter& in, const Value& self, const Bound& args) {
  return strip_both(in, self, args, false, true);
}

Value replace(Interpreter& in, const Value& self, const Bound& args) {
  const std::string& text = self.text();
  const std::string& from = text_argument(args, 0, "replace() argument 1");
  const std::string& to = text_argument(args, 1, "replace() argument 2");
  int64_t left = args.has(2) ? to_index(args.at(2), "count") : -1;
  Sink out(in.heap());
  size_t at = 0;
  if (from.empty()) {
    // Between all characters, and at both ends.
    for (; left != 0; --left) {
      out.append(to);
      if (at >= text.size()) break;
      const size_t begin = at;
      next_code_point(text, &at);
      out.append(std::string_view(text).substr(begin, at - begin));
    }
  } else {
    for (; left != 0; --left) {
      const size_t found = find_text(text, from, at);
      if (found == std::string::npos) break;
      out.append(std::string_view(text).substr(at, found - at));
      out.append(to);
      at = found + from.size();
    }
  }
  out.append(std::string_view(text).substr(std::min(at, text.size())));
  return same_type(in, self, out.take());
}

// How much padding to `width`, and with which character.
struct Padding {
  size_t count = 0;
  std::string unit = " ";
};

Padding padding(Interpreter& in, const Value& self, const Bound& args) {
  Padding out;
  const int64_t width = to_index(args.at(0), "width");
  const int64_t size = length(self);
  out.count = width > size ? static_cast<size_t>(width - size) : 0;
  if (args.has(1)) {
    out.unit = text_argument(args, 1, "the fill character");
    if (count_code_points(out.unit) != 1) {
      fail("The fill character must be exactly one character long");
    }
  }
  in.heap().check_room(out.count);
  return out;
}

std::string repeated(Interpreter& in, const std::string& unit, size_t count) {
  in.heap().check_room(unit.size() * count);
  std::string out;
  for (size_t i = 0; i < count; ++i) out += unit;
  return out;
}

Value ljust(Interpreter& in, const Value& self, const Bound& args) {
  const Padding pad = padding(in, self, args);
  return same_type(in, self, self.text() + repeated(in, pad.unit, pad.count));
}
Value rjust(Interpreter& in, const Value& self, const Bound& args) {
  const Padding pad = padding(in, self, args);
  return same_type(in, self, repeated(in, pad.unit, pad.count) + self.text());
}
Value center(Interpreter& in, const Value& self, const Bound& args) {
  const Padding pad = padding(in, self, args);
  const auto width = static_cast<uint64_t>(length(self)) + pad.count;
  const size_t left = pad.count / 2 + (pad.count & width & 1);
  return same_type(in,
                   self,
                   repeated(in, pad.unit, left) + self.text() +
                       repeated(in, pad.unit, pad.count - left));
}

Value zfill(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t width = to_index(args.at(0), "width");
  const int64_t size = length(self);
  const size_t count = width > size ? static_cast<size_t>(width - size) : 0;
  in.heap().check_room(count);
  const std::string& text = self.text();
  const size_t sign =
      !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return same_type(
      in,
      self,
      text.substr(0, sign) + std::string(count, '0') + text.substr(sign));
}

Value expandtabs(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t size = args.has(0) ? to_index(args.at(0), "tabsize") : 8;
  Sink out(in.heap());
  uint64_t column = 0;
  const std::string& text = self.text();
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    if (c == '\t') {
      if (size <= 0) continue;
      const auto stop = static_cast<uint64_t>(size);
      const uint64_t count = stop - column % stop;
      out.append(static_cast<size_t>(count), ' ');
      column += count;
      continue;
    }
    column = c == '\n' || c == '\r' ? 0 : column + 1;
    out.append(std::string_view(text).substr(begin, at - begin));
  }
  return same_type(in, self, out.take());
}

Value removeprefix(Interpreter& in, const Value& self, const Bound& args) {
  const std::string& prefix = text_argument(args, 0, "removeprefix() argument");
  const std::string& text = self.text();
  if (text.compare(0, prefix.size(), prefix) != 0) return self;
  return same_type(in, self, text.substr(prefix.size()));
}
Value removesuffix(Interpreter& in, const Value& self, const Bound& args) {
  const std::string& suffix = text_argument(args, 0, "removesuffix() argument");
  const std::string& text = self.text();
  if (suffix.empty() || text.size() < suffix.size() ||
      text.compare(text.size() - suffix.size(), suffix.size(), suffix) != 0) {
    return self;
  }
  return same_type(in, self, text.substr(0, text.size() - suffix.size()));
}

// True when there is text and `test` holds for every character.
Value every(Interpreter& in, const Value& self, bool (*test)(char32_t)) {
  const std::string& text = self.text();
  in.heap().step(text.size() / 16);
  for (size_t at = 0; at < text.size();) {
    if (!test(next_code_point(text, &at))) return Value::boolean(false);
  }
  return Value::boolean(!text.empty());
}

Value isspace(Interpreter& in, const Value& self, const Bound&) {
  return every(in, self, is_space);
}
Value isalpha(Interpreter& in, const Value& self, const Bound&) {
  return every(in, self, is_alpha);
}
Value isalnum(Interpreter& in, const Value& self, const Bound&) {
  return every(in, self, is_alnum);
}
Value isdecimal(Interpreter& in, const Value& self, const Bound&) {
  return every(in, self, is_decimal);
}
Value isdigit(Interpreter& in, const Value& self, const Bound&) {
  return every(in, self, is_digit);
}
Value isnumeric(Interpreter& in, const Value& self, const Bound&) {
  return every(in, self, is_numeric);
}
Value isprintable(Interpreter& in, const Value& self, const Bound&) {
  if (self.text().empty()) return Value::boolean(true);
  return every(in, self, is_printable);
}
Value isascii(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.as<StringObject>().is_ascii());
}
Value isidentifier(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(is_identifier(self.text()));
}

Value cased(Interpreter& in, const Value& self, bool want_lower) {
  const std::string& text = self.text();
  in.heap().step(text.size() / 16);
  bool seen = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_code_point(text, &at);
    if (is_title(c)) return Value::boolean(false);
    if (want_lower ? is_upper(c) : is_lower(c)) return Value::boolean(false);
    seen = seen || is_cased(c);
  }
  return Value::boolean(seen);
}

Value islower(Interpreter& in, const Value& self, const Bound&) {
  return cased(in, self, true);
}
Value isupper(Interpreter& in, const Value& self, const Bound&) {
  return cased(in, self, false);
}
Value istitle(Interpreter& in, const Value& self, const Bound&) {
  const std::string& text = self.text();
  in.heap().step(text.size() / 16);
  bool seen = false;
  bool cased_before = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_code_point(text, &at);
    if (is_upper(c) || is_title(c)) {
      if (cased_before) return Value::boolean(false);
      cased_before = seen = true;
    } else if (is_lower(c)) {
      if (!cased_before) return Value::boolean(false);
      seen = true;
    } else {
      cased_before = false;
    }
  }
  return Value::boolean(seen);
}

constexpr Builtin kMethods[] = {
    {"upper", "/", 0, upper},
    {"lower", "/", 0, lower},
    {"title", "/", 0, title},
    {"capitalize", "/", 0, capitalize_method},
    {"swapcase", "/", 0, swapcase},
    {"casefold", "/", 0, casefold},
    {"strip", "/chars", 0, strip},
    {"lstrip", "/chars", 0, lstrip},
    {"rstrip", "/chars", 0, rstrip},
    {"replace", "/old,new,count", 2, replace},
    {"ljust", "/width,fillchar", 1, ljust},
    {"rjust", "/width,fillchar", 1, rjust},
    {"center", "/width,fillchar", 1, center},
    {"zfill", "/width", 1, zfill},
    {"expandtabs", "tabsize", 0, expandtabs},
    {"removeprefix", "/prefix", 1, removeprefix},
    {"removesuffix", "/suffix", 1, removesuffix},
    {"isspace", "/", 0, isspace},
    {"isalpha", "/", 0, isalpha},
    {"isalnum", "/", 0, isalnum},
    {"isdecimal", "/", 0, isdecimal},
    {"isdigit", "/", 0, isdigit},
    {"isnumeric", "/", 0, isnumeric},
    {"isprintable", "/", 0, isprintable},
    {"isascii", "/", 0, isascii},
    {"isidentifier", "/", 0, isidentifier},
    {"islower", "/", 0, islower},
    {"isupper", "/", 0, isupper},
    {"istitle", "/", 0, istitle},
};

}  // namespace

BuiltinTable text_methods() {
  return {kMethods, std::size(kMethods)};
}

}  // namespace mlx_flash::jinja
