// SPDX-License-Identifier: MIT
// json.dumps, as the tojson filter of chat templates calls it.
#include <algorithm>
#include <cmath>

#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

void append_unit(std::string* out, uint32_t unit) {
  static constexpr char kDigits[] = "0123456789abcdef";
  *out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) {
    out->push_back(kDigits[(unit >> shift) & 0xF]);
  }
}

void append_character(std::string* out, char32_t c, bool ensure_ascii) {
  switch (c) {
    case '"':
      *out += "\\\"";
      return;
    case '\\':
      *out += "\\\\";
      return;
    case '\n':
      *out += "\\n";
      return;
    case '\r':
      *out += "\\r";
      return;
    case '\t':
      *out += "\\t";
      return;
    case '\f':
      *out += "\\f";
      return;
    case '\b':
      *out += "\\b";
      return;
    default:
      break;
  }
  if (c < 0x20 || (ensure_ascii && c >= 0x80 && c < 0x10000)) {
    append_unit(out, c);
  } else if (ensure_ascii && c >= 0x10000) {
    append_unit(out, 0xD800 + ((c - 0x10000) >> 10));
    append_unit(out, 0xDC00 + ((c - 0x10000) & 0x3FF));
  } else {
    append_utf8(out, c);
  }
}

std::string quote(std::string_view text, bool ensure_ascii) {
  std::string out;
  out.reserve(text.size() + 2);
  out += '"';
  for (size_t at = 0; at < text.size();) {
    append_character(&out, next_code_point(text, &at), ensure_ascii);
  }
  out += '"';
  return out;
}

std::string number_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return repr_float(value);
}

class JsonWriter {
 public:
  JsonWriter(Heap& heap, const JsonStyle& style) : out_(heap), style_(style) {}

  void write(const Value& value, size_t level) {
    out_.heap().step();
    switch (value.kind()) {
      case Kind::kNone:
        return out_.append("null");
      case Kind::kBool:
        return out_.append(value.as_bool() ? "true" : "false");
      case Kind::kInt:
        return out_.append(std::to_string(value.as_int()));
      case Kind::kBigInt:
        return out_.append(value.as<StringObject>().text);
      case Kind::kFloat:
        return out_.append(number_text(value.as_float()));
      case Kind::kString:
        out_.heap().check_room(value.text().size() * 2);
        return out_.append(quote(value.text(), style_.ensure_ascii));
      case Kind::kList:
      case Kind::kTuple:
        return write_list(value.as<ListObject>().items, level);
      case Kind::kDict:
        return write_dict(value.as<DictObject>(), level);
      default:
        fail(std::string("Object of type ") + type_name(value) +
             " is not JSON serializable");
    }
  }

  std::string take() { return out_.take(); }

 private:
  void new_line(size_t level) {
    if (!style_.has_indent) return;
    out_.append("\n");
    for (size_t i = 0; i < level; ++i) out_.append(style_.indent);
  }

  void write_list(const Values& items, size_t level) {
    if (items.empty()) return out_.append("[]");
    out_.append("[");
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.append(style_.item_separator);
      new_line(level + 1);
      write(items[i], level + 1);
    }
    new_line(level);
    out_.append("]");
  }

  std::string key_text(const Value& key) {
    switch (key.kind()) {
      case Kind::kString:
        return key.text();
      case Kind::kNone:
        return "null";
      case Kind::kBool:
        return key.as_bool() ? "true" : "false";
      case Kind::kInt:
        return std::to_string(key.as_int());
      case Kind::kBigInt:
        return key.as<StringObject>().text;
      case Kind::kFloat:
        return number_text(key.as_float());
      default:
        fail(std::string("keys must be str, int, float, bool or None, not ") +
             type_name(key));
    }
  }

  void write_dict(const DictObject& dict, size_t level) {
    if (dict.size() == 0) return out_.append("{}");
    std::vector<const DictObject::Entry*> entries;
    entries.reserve(dict.size());
    for (const auto& entry : dict.entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(
          entries.begin(), entries.end(), [&](const auto* a, const auto* b) {
            return ordered(out_.heap(), a->key, b->key, "<");
          });
    }
    out_.append("{");
    bool first = true;
    for (const auto* entry : entries) {
      if (!first) out_.append(style_.item_separator);
      first = false;
      new_line(level + 1);
      out_.append(quote(key_text(entry->key), style_.ensure_ascii));
      out_.append(style_.key_separator);
      write(entry->value, level + 1);
    }
    new_line(level);
    out_.append("}");
  }

  Sink out_;
  const JsonStyle& style_;
};

}  // namespace

std::string to_json(Heap& heap, const Value& value, const JsonStyle& style) {
  JsonWriter writer(heap, style);
  writer.write(value, 0);
  return writer.take();
}

}  // namespace mlx_flash::jinja
