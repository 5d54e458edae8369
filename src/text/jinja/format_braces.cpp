// SPDX-License-Identifier: MIT
// str.format: replacement fields in braces.
#include "text/jinja/builtins.h"

namespace mlx_flash::jinja {
namespace {

class BraceFormatter {
 public:
  BraceFormatter(Interpreter& in, const Args& args) : in_(in), args_(args) {}

  // `depth` counts fields inside a format specification: one is allowed.
  std::string run(std::string_view text, int depth) {
    if (depth > 2) fail("Max string recursion exceeded");
    Sink out(in_.heap());
    for (size_t at = 0; at < text.size();) {
      const size_t brace = text.find_first_of("{}", at);
      if (brace == std::string_view::npos) {
        out.append(text.substr(at));
        break;
      }
      out.append(text.substr(at, brace - at));
      const bool doubled =
          brace + 1 < text.size() && text[brace + 1] == text[brace];
      if (doubled) {
        out.append(text.substr(brace, 1));
        at = brace + 2;
        continue;
      }
      if (text[brace] == '}') {
        fail("Single '}' encountered in format string");
      }
      const size_t end = field_end(text, brace + 1);
      out.append(field(text.substr(brace + 1, end - brace - 1), depth));
      at = end + 1;
    }
    return out.take();
  }

 private:
  static size_t field_end(std::string_view text, size_t at) {
    int depth = 1;
    for (; at < text.size(); ++at) {
      if (text[at] == '{') ++depth;
      if (text[at] == '}' && --depth == 0) return at;
    }
    fail("expected '}' before end of string");
  }

  std::string field(std::string_view text, int depth) {
    in_.heap().step();
    // The name ends at "!" or ":" outside brackets.
    size_t end = 0;
    bool in_brackets = false;
    for (; end < text.size(); ++end) {
      if (text[end] == '[') in_brackets = true;
      if (text[end] == ']') in_brackets = false;
      if (!in_brackets && (text[end] == '!' || text[end] == ':')) break;
    }
    Value value = lookup(text.substr(0, end));
    if (end < text.size() && text[end] == '!') {
      const char kind = end + 1 < text.size() ? text[end + 1] : ' ';
      Sink shown(in_.heap());
      if (kind == 'r' || kind == 'a') {
        append_repr(shown, value);
      } else if (kind == 's') {
        append_str(shown, value);
      } else {
        fail("unknown conversion in a format string");
      }
      value = in_.text(shown.take());
      end += 2;
    }
    std::string spec;
    if (end < text.size()) {
      if (text[end] != ':') fail("expected ':' after conversion specifier");
      spec = run(text.substr(end + 1), depth + 1);
    }
    return format_spec(in_.heap(), value, spec);
  }

  Value lookup(std::string_view name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    Value value = argument(std::string(name.substr(0, end)));
    for (size_t at = end; at < name.size();) {
      if (name[at] == '.') {
        const size_t stop =
            std::min(name.find_first_of(".[", at + 1), name.size());
        const std::string part(name.substr(at + 1, stop - at - 1));
        if (part.empty()) fail("Empty attribute in format string");
        value = in_.get_attribute(value, part);
        at = stop;
      } else {
        const size_t stop = name.find(']', at);
        if (name[at] != '[' || stop == std::string_view::npos) {
          fail("Missing ']' in format string");
        }
        const std::string part(name.substr(at + 1, stop - at - 1));
        if (part.empty()) fail("Empty attribute in format string");
        value = in_.get_item(
            value,
            is_index(part) ? Value::integer(std::stoll(part)) : in_.text(part));
        at = stop + 1;
      }
    }
    return value;
  }

  static bool is_index(const std::string& text) {
    if (text.empty() || text.size() > 17) return false;
    for (const char c : text) {
      if (c < '0' || c > '9') return false;
    }
    return true;
  }

  Value argument(const std::string& name) {
    const bool is_number = is_index(name);
    if (name.empty() || is_number) {
      const int numbering = name.empty() ? 1 : 2;
      if (numbering_ != 0 && numbering_ != numbering) {
        fail(
            "cannot switch between manual field specification and automatic "
            "field numbering");
      }
      numbering_ = numbering;
      const size_t place =
          is_number ? static_cast<size_t>(std::stoll(name)) : automatic_++;
      if (place >= args_.positional.size()) {
        fail("Replacement index " + std::to_string(place) +
             " out of range for positional args tuple");
      }
      return args_.positional[place];
    }
    for (const auto& [key, value] : args_.keyword) {
      if (key == name) return value;
    }
    fail("there is no argument " + repr_text(name) + " to format");
  }

  Interpreter& in_;
  const Args& args_;
  size_t automatic_ = 0;
  int numbering_ = 0;  // 0: not yet known, 1: automatic, 2: by number
};

}  // namespace

Value format_braces(Interpreter& in, const Value& format, const Args& args) {
  std::string out = BraceFormatter(in, args).run(format.text(), 1);
  return is_markup(format) ? make_markup(in.heap(), std::move(out))
                           : in.text(std::move(out));
}

}  // namespace mlx_flash::jinja
