// SPDX-License-Identifier: MIT
// Filters that work on text. Each follows jinja2/filters.py.
#include <algorithm>
#include <iterator>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

Args no_args() {
  return {};
}

// Forwards to the method of str.
Value method(Interpreter& in,
             const Value& self,
             const char* name,
             const Args& args) {
  const Value text = self.is_string() ? self : in.text(to_str(in.heap(), self));
  return call_builtin(in, *find_method(text, name), text, args);
}

Value upper(Interpreter& in, const Value& self, const Bound&) {
  return method(in, self, "upper", no_args());
}

Value lower(Interpreter& in, const Value& self, const Bound&) {
  return method(in, self, "lower", no_args());
}

Value capitalize_filter(Interpreter& in, const Value& self, const Bound&) {
  return method(in, self, "capitalize", no_args());
}

Value center(Interpreter& in, const Value& self, const Bound& args) {
  Args width;
  width.positional.push_back(args.has(0) ? args.at(0) : Value::integer(80));
  return method(in, self, "center", width);
}

// Every word begins upper case, words being split at [-\s({\[<]+.
Value title(Interpreter& in, const Value& self, const Bound&) {
  const std::string text = str_of(in, self);
  in.heap().step(text.size() / 8);
  std::string out;
  std::string word;
  const auto flush = [&] {
    if (word.empty()) return;
    size_t first = 0;
    next_code_point(word, &first);
    out += to_upper(std::string_view(word).substr(0, first));
    out += to_lower(std::string_view(word).substr(first));
    word.clear();
  };
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    const bool splits =
        is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    if (splits) {
      flush();
      out.append(text, begin, at - begin);
    } else {
      word.append(text, begin, at - begin);
    }
  }
  flush();
  return in.text(std::move(out));
}

Value trim(Interpreter& in, const Value& self, const Bound& args) {
  Args chars;
  if (args.has(0)) chars.positional.push_back(args.at(0));
  return method(in, self, "strip", chars);
}

Value replace(Interpreter& in, const Value& self, const Bound& args) {
  Args out;
  out.positional = {in.text(str_of(in, args.at(0))),
                    in.text(str_of(in, args.at(1)))};
  if (!args.is_none(2)) out.positional.push_back(args.at(2));
  return method(in, in.text(str_of(in, self)), "replace", out);
}

Value string(Interpreter& in, const Value& self, const Bound&) {
  return self.is_string() ? self : in.text(str_of(in, self));
}

Value safe(Interpreter& in, const Value& self, const Bound&) {
  return make_markup(in.heap(), str_of(in, self));
}

Value escape(Interpreter& in, const Value& self, const Bound&) {
  if (is_markup(self)) return self;
  return make_markup(in.heap(), escape_html(in, self));
}

Value forceescape(Interpreter& in, const Value& self, const Bound&) {
  return make_markup(in.heap(), escape_html(in, self));
}

Value format(Interpreter& in, const Value& self, const Bound& args) {
  const Value text = in.text(str_of(in, self));
  const Args& raw = *args.raw;
  if (!raw.keyword.empty() && !raw.positional.empty()) {
    fail("can't handle positional and keyword arguments at the same time");
  }
  if (raw.keyword.empty()) {
    return format_percent(
        in.heap(), text, make_tuple(in.heap(), raw.positional));
  }
  Value named(Kind::kDict, new DictObject(&in.heap()));
  for (const auto& [name, value] : raw.keyword) {
    named.as<DictObject>().set(in.text(name), value);
  }
  return format_percent(in.heap(), text, named);
}

std::vector<std::string> lines_of(Heap& heap, const std::string& text) {
  std::vector<std::string> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = next_code_point(text, &at);
    if (!is_line_end(c)) continue;
    heap.check_room(text.size() + 2 * lines.size() * sizeof(std::string));
    lines.push_back(text.substr(begin, end - begin));
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

Value indent(Interpreter& in, const Value& self, const Bound& args) {
  if (self.is_undefined()) fail_undefined(self);
  if (!self.is_string()) {
    fail(std::string("indent needs a str, not ") + type_name(self));
  }
  Heap& heap = in.heap();
  std::string unit = "    ";
  if (args.has(0) && args.at(0).is_string()) {
    unit = args.at(0).text();
  } else if (args.has(0)) {
    const int64_t width = std::max<int64_t>(to_index(args.at(0), "width"), 0);
    heap.check_room(static_cast<size_t>(width));
    unit.assign(static_cast<size_t>(width), ' ');
  }
  const bool blank = args.truth(2);
  heap.step_bytes(self.text().size() * 4);
  const std::vector<std::string> lines = lines_of(heap, self.text() + "\n");
  Sink out(heap);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out.append("\n");
    const bool wanted = i == 0 ? args.truth(1) : (blank || !lines[i].empty());
    if (wanted) out.append(unit);
    out.append(lines[i]);
  }
  return is_markup(self) ? make_markup(heap, out.take()) : in.text(out.take());
}

Value truncate(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t size = length(self);
  const int64_t limit = args.has(0) ? to_index(args.at(0), "length") : 255;
  const Value end = args.has(2) ? args.at(2) : in.text("...");
  const int64_t leeway = args.is_none(3) ? 5 : to_index(args.at(3), "leeway");
  const int64_t end_size = length(end);
  if (limit < end_size) {
    fail("expected length >= " + std::to_string(end_size) + ", got " +
         std::to_string(limit));
  }
  if (leeway < 0) {
    fail("expected leeway >= 0, got " + std::to_string(leeway));
  }
  if (size <= limit || size - limit <= leeway) return self;
  Value cut =
      slice_characters(in, self, 0, static_cast<size_t>(limit - end_size));
  if (!args.truth(1)) {
    if (!cut.is_string()) fail("truncate needs a str");
    const size_t space = cut.text().rfind(' ');
    if (space != std::string::npos) cut = in.text(cut.text().substr(0, space));
  }
  return binary(in.heap(), BinaryOp::kAdd, cut, end);
}

Value wordcount(Interpreter& in, const Value& self, const Bound&) {
  const std::string text = str_of(in, self);
  in.heap().step(text.size() / 8);
  int64_t words = 0;
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = next_code_point(text, &at);
    const bool is_word = c == '_' || is_alnum(c);
    words += is_word && !inside ? 1 : 0;
    inside = is_word;
  }
  return Value::integer(words);
}

void append_quoted(std::string* out, std::string_view text, bool for_query) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '_' || c == '.' ||
                       c == '-' || c == '~' || (c == '/' && !for_query);
    if (plain) {
      *out += c;
    } else if (c == ' ' && for_query) {
      *out += '+';
    } else {
      const auto byte = static_cast<unsigned char>(c);
      *out += '%';
      *out += kDigits[byte >> 4];
      *out += kDigits[byte & 15];
    }
  }
}

Value urlencode(Interpreter& in, const Value& self, const Bound&) {
  std::string out;
  if (self.is_string() || !Iteration::possible(self)) {
    append_quoted(&out, str_of(in, self), false);
    return in.text(std::move(out));
  }
  Value pairs = self;
  if (self.is(Kind::kDict)) {
    pairs = Value(
        Kind::kDictView,
        new DictViewObject(&in.heap(), self, DictViewObject::Part::kItems));
  }
  Iteration items(in.heap(), pairs);
  Value item;
  bool first = true;
  while (items.next(&item)) {
    const Values pair = to_values(in.heap(), item);
    if (pair.size() != 2) fail("urlencode needs pairs");
    if (!first) out += '&';
    first = false;
    append_quoted(&out, str_of(in, pair[0]), true);
    out += '=';
    append_quoted(&out, str_of(in, pair[1]), true);
    in.heap().check_room(out.size());
  }
  return in.text(std::move(out));
}

// Drops comments and tags, then joins the words with single spaces.
Value striptags(Interpreter& in, const Value& self, const Bound&) {
  std::string text = str_of(in, self);
  in.heap().step_bytes(text.size() * 8);
  for (const auto& [open, close] : {std::pair{"<!--", "-->"}, {"<", ">"}}) {
    std::string kept;
    size_t at = 0;
    for (;;) {
      const size_t begin = text.find(open, at);
      const size_t end = begin == std::string::npos ? std::string::npos
                                                    : text.find(close, begin);
      if (end == std::string::npos) break;
      kept.append(text, at, begin - at);
      at = end + std::string_view(close).size();
    }
    text = kept.append(text, at);
  }
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = next_code_point(text, &at);
    if (!is_space(c)) {
      out.append(text, begin, at - begin);
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  static constexpr std::pair<std::string_view, char> kEntities[] = {
      {"&lt;", '<'},
      {"&gt;", '>'},
      {"&#34;", '"'},
      {"&quot;", '"'},
      {"&#39;", '\''},
      {"&#x27;", '\''},
      {"&amp;", '&'}};
  std::string plain;
  for (size_t at = 0; at < out.size();) {
    const std::string_view rest = std::string_view(out).substr(at);
    size_t used = 1;
    char c = out[at];
    for (const auto& [entity, value] : kEntities) {
      if (rest.substr(0, entity.size()) != entity) continue;
      used = entity.size();
      c = value;
      break;
    }
    plain += c;
    at += used;
  }
  return in.text(std::move(plain));
}

Value xmlattr(Interpreter& in, const Value& self, const Bound& args) {
  if (self.is_undefined()) fail_undefined(self);
  if (!self.is(Kind::kDict)) fail("xmlattr needs a mapping");
  Sink out(in.heap());
  bool first = true;
  for (const auto& entry : self.as<DictObject>().entries()) {
    if (entry.value.is_none() || entry.value.is_undefined()) continue;
    const std::string key = str_of(in, entry.key);
    if (key.find_first_of(" \t\n\r\f\v/>=") != std::string::npos) {
      fail("Invalid character in attribute name: " + repr_text(key));
    }
    const bool space = !first || !args.has(0) || args.truth(0);
    if (space) out.append(" ");
    first = false;
    out.append(escape_html(in, entry.key) + "=\"" +
               (is_markup(entry.value) ? entry.value.text()
                                       : escape_html(in, entry.value)) +
               "\"");
  }
  return in.text(out.take());
}

// Lines of at most `width` characters, broken at white space.
void wrap_line(Interpreter& in,
               const std::string& line,
               size_t width,
               bool break_long,
               std::vector<std::string>* out) {
  std::vector<std::string> chunks;  // words and the white space between
  for (size_t at = 0; at < line.size();) {
    const size_t begin = at;
    size_t probe = at;
    const bool space = is_space(next_code_point(line, &probe));
    while (at < line.size()) {
      size_t next = at;
      const char32_t c = next_code_point(line, &next);
      if (is_space(c) != space) break;
      at = next;
      // A hyphen inside a word allows a break after it.
      if (!space && c == '-' && at < line.size() && at - begin > 1) break;
    }
    in.heap().check_room(line.size() + 2 * chunks.size() * sizeof(std::string));
    chunks.push_back(line.substr(begin, at - begin));
  }
  std::string current;
  size_t used = 0;
  const auto flush = [&] {
    const std::string_view kept = strip_right(current);
    if (!kept.empty()) out->emplace_back(kept);
    current.clear();
    used = 0;
  };
  for (std::string& chunk : chunks) {
    in.heap().step();
    size_t size = count_code_points(chunk);
    const bool blank = strip_left(chunk).empty();
    if (used == 0 && blank && !out->empty()) continue;
    if (used + size > width && used > 0 && !(size > width && break_long)) {
      flush();
      if (blank) continue;
    }
    while (break_long && size > width && used + size > width) {
      const size_t room = byte_offset(chunk, width - used);
      current += chunk.substr(0, room);
      chunk.erase(0, room);
      size = count_code_points(chunk);
      flush();
    }
    current += chunk;
    used += size;
  }
  flush();
}

Value wordwrap(Interpreter& in, const Value& self, const Bound& args) {
  if (!self.is_string()) fail("wordwrap needs a str");
  const int64_t width = args.has(0) ? to_index(args.at(0), "width") : 79;
  if (width <= 0)
    fail("invalid width " + std::to_string(width) + " (must be > 0)");
  const std::string separator = args.is_none(2) ? "\n" : str_of(in, args.at(2));
  in.heap().step_bytes(self.text().size() * 16);
  Sink out(in.heap());
  bool first = true;
  for (const std::string& line : lines_of(in.heap(), self.text())) {
    std::vector<std::string> wrapped;
    wrap_line(in,
              line,
              static_cast<size_t>(width),
              !args.has(1) || args.truth(1),
              &wrapped);
    if (wrapped.empty()) wrapped.emplace_back();
    for (const std::string& part : wrapped) {
      if (!first) out.append(separator);
      first = false;
      out.append(part);
    }
  }
  return in.text(out.take());
}

constexpr Builtin kFilters[] = {
    {"upper", "", 0, upper},
    {"lower", "", 0, lower},
    {"capitalize", "", 0, capitalize_filter},
    {"center", "width", 0, center},
    {"title", "", 0, title},
    {"trim", "chars", 0, trim},
    {"replace", "old,new,count", 2, replace},
    {"string", "", 0, string},
    {"safe", "", 0, safe},
    {"escape", "", 0, escape},
    {"e", "", 0, escape},
    {"forceescape", "", 0, forceescape},
    {"format", "*", 0, format},
    {"indent", "width,first,blank", 0, indent},
    {"truncate", "length,killwords,end,leeway", 0, truncate},
    {"wordcount", "", 0, wordcount},
    {"wordwrap",
     "width,break_long_words,wrapstring,break_on_hyphens",
     0,
     wordwrap},
    {"urlencode", "", 0, urlencode},
    {"striptags", "", 0, striptags},
    {"xmlattr", "autospace", 0, xmlattr},
};

}  // namespace

BuiltinTable text_filters() {
  return {kFilters, std::size(kFilters)};
}

std::string escape_html(Interpreter& in, const Value& value) {
  Sink out(in.heap());
  for (const char c : str_of(in, value)) {
    switch (c) {
      case '&':
        out.append("&amp;");
        break;
      case '<':
        out.append("&lt;");
        break;
      case '>':
        out.append("&gt;");
        break;
      case '"':
        out.append("&#34;");
        break;
      case '\'':
        out.append("&#39;");
        break;
      default:
        out.append(1, c);
    }
  }
  return out.take();
}

}  // namespace mlx_flash::jinja
