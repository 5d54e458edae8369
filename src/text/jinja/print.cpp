// SPDX-License-Identifier: MIT
// str() and repr() as Python prints them.
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "text/jinja/interpreter.h"
#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

void append_hex(std::string* out, char32_t c, int digits) {
  static constexpr char kDigits[] = "0123456789abcdef";
  for (int shift = (digits - 1) * 4; shift >= 0; shift -= 4) {
    out->push_back(kDigits[(c >> shift) & 0xF]);
  }
}

void append_escaped(std::string* out, char32_t c) {
  if (c == '\n') {
    *out += "\\n";
  } else if (c == '\r') {
    *out += "\\r";
  } else if (c == '\t') {
    *out += "\\t";
  } else if (c < 0x100) {
    *out += "\\x";
    append_hex(out, c, 2);
  } else if (c < 0x10000) {
    *out += "\\u";
    append_hex(out, c, 4);
  } else {
    *out += "\\U";
    append_hex(out, c, 8);
  }
}

void append_items(Sink& out, const Values& items) {
  bool first = true;
  for (const Value& item : items) {
    if (!first) out.append(", ");
    first = false;
    append_repr(out, item);
  }
}

void append_dict(Sink& out, const DictObject& dict) {
  out.append("{");
  bool first = true;
  for (const auto& entry : dict.entries()) {
    if (!first) out.append(", ");
    first = false;
    append_repr(out, entry.key);
    out.append(": ");
    append_repr(out, entry.value);
  }
  out.append("}");
}

void append_range(Sink& out, const RangeObject& range) {
  out.append("range(" + std::to_string(range.start) + ", " +
             std::to_string(range.stop));
  if (range.step != 1) out.append(", " + std::to_string(range.step));
  out.append(")");
}

void append_view(Sink& out, const Value& value) {
  out.append(type_name(value));
  out.append("([");
  Iteration items(out.heap(), value);
  Value item;
  bool first = true;
  while (items.next(&item)) {
    if (!first) out.append(", ");
    first = false;
    append_repr(out, item);
  }
  out.append("])");
}

}  // namespace

void Sink::append(std::string_view text) {
  heap_->step_bytes(text.size() + 64);
  heap_->check_room(text_.size() + text.size());
  text_.append(text);
}

void Sink::append(size_t count, char c) {
  heap_->check_room(text_.size());
  heap_->check_room(count);
  heap_->check_room(text_.size() + count);
  heap_->step_bytes(count);
  text_.append(count, c);
}

std::string repr_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // Shortest digits that read back the same: d.ddde[+-]xx
  std::array<char, 64> buffer{};
  const auto end = std::to_chars(buffer.data(),
                                 buffer.data() + buffer.size(),
                                 value,
                                 std::chars_format::scientific);
  std::string text(buffer.data(), end.ptr);
  const size_t mark = text.find('e');
  const int exponent = std::atoi(text.c_str() + mark + 1);
  if (exponent < -4 || exponent >= 16) return text;
  std::string digits;
  const std::string sign = text[0] == '-' ? "-" : "";
  for (size_t i = 0; i < mark; ++i) {
    if (text[i] >= '0' && text[i] <= '9') digits += text[i];
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') +
           digits;
  }
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  }
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string repr_text(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (is_printable(c)) {
      out.append(text.substr(begin, at - begin));
    } else {
      append_escaped(&out, c);
    }
  }
  out += quote;
  return out;
}

void append_repr(Sink& out, const Value& value) {
  out.heap().step();
  switch (value.kind()) {
    case Kind::kString:
      out.heap().check_room(value.text().size() * 2);
      if (is_markup(value)) {
        out.append("Markup(" + repr_text(value.text()) + ")");
      } else {
        out.append(repr_text(value.text()));
      }
      return;
    case Kind::kUndefined:
      return out.append("Undefined");
    default:
      return append_str(out, value);
  }
}

void append_str(Sink& out, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return;
    case Kind::kNone:
      return out.append("None");
    case Kind::kBool:
      return out.append(value.as_bool() ? "True" : "False");
    case Kind::kInt:
      return out.append(std::to_string(value.as_int()));
    case Kind::kFloat:
      return out.append(repr_float(value.as_float()));
    case Kind::kBigInt:
      return out.append(value.as<StringObject>().text);
    case Kind::kString:
      return out.append(value.text());
    case Kind::kList:
      out.append("[");
      append_items(out, value.as<ListObject>().items);
      return out.append("]");
    case Kind::kTuple: {
      const Values& items = value.as<ListObject>().items;
      out.append("(");
      append_items(out, items);
      return out.append(items.size() == 1 ? ",)" : ")");
    }
    case Kind::kDict:
      return append_dict(out, value.as<DictObject>());
    case Kind::kDictView:
      return append_view(out, value);
    case Kind::kRange:
      return append_range(out, value.as<RangeObject>());
    case Kind::kMacro:
      return out.append("<Macro " +
                        repr_text(value.as<MacroObject>().code->name) + ">");
    case Kind::kLoop: {
      auto& loop = value.as<LoopObject>();
      return out.append("<LoopContext " + std::to_string(loop.index0 + 1) +
                        "/" + std::to_string(loop.length()) + ">");
    }
    default:
      return out.append(std::string("<") + type_name(value) + " object>");
  }
}

std::string to_str(Heap& heap, const Value& value) {
  if (value.is_string()) {
    heap.check_room(value.text().size());
    return value.text();
  }
  Sink out(heap);
  append_str(out, value);
  return out.take();
}

}  // namespace mlx_flash::jinja
