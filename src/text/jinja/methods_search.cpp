// SPDX-License-Identifier: MIT
// Methods of str that search, split and join.
#include <algorithm>
#include <iterator>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

const std::string& text_argument(const Bound& args,
                                 size_t i,
                                 const char* what) {
  if (!args.at(i).is_string()) {
    fail(std::string(what) + " must be str, not " + type_name(args.at(i)));
  }
  return args.at(i).text();
}

// Byte range of text[start:stop] for the bounds in arguments `first` and
// `first` + 1; false when start lies behind the end of the text.
bool bounds(const Value& self,
            const Bound& args,
            size_t first,
            size_t* begin_byte,
            size_t* end_byte) {
  const int64_t size = length(self);
  int64_t start = args.is_none(first) ? 0 : to_index(args.at(first), "start");
  int64_t stop =
      args.is_none(first + 1) ? size : to_index(args.at(first + 1), "end");
  if (start < 0) start = std::max<int64_t>(start + size, 0);
  if (stop < 0) stop = std::max<int64_t>(stop + size, 0);
  stop = std::min(stop, size);
  if (start > size) return false;
  *begin_byte = byte_offset(self.text(), static_cast<size_t>(start));
  *end_byte = byte_offset(self.text(), static_cast<size_t>(stop));
  return *begin_byte <= *end_byte;
}

int64_t find_at(Interpreter& in,
                const Value& self,
                const Bound& args,
                bool backwards) {
  const std::string& needle = text_argument(args, 0, "must be str: argument 1");
  size_t begin = 0;
  size_t end = 0;
  in.heap().step_bytes(self.text().size());
  if (!bounds(self, args, 1, &begin, &end)) return -1;
  const std::string_view part =
      std::string_view(self.text()).substr(begin, end - begin);
  const size_t found =
      backwards ? find_last_text(part, needle) : find_text(part, needle);
  if (found == std::string_view::npos) return -1;
  return static_cast<int64_t>(count_code_points(
      std::string_view(self.text()).substr(0, begin + found)));
}

Value find(Interpreter& in, const Value& self, const Bound& args) {
  return Value::integer(find_at(in, self, args, false));
}
Value rfind(Interpreter& in, const Value& self, const Bound& args) {
  return Value::integer(find_at(in, self, args, true));
}
Value index(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t found = find_at(in, self, args, false);
  if (found < 0) fail("substring not found");
  return Value::integer(found);
}
Value rindex(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t found = find_at(in, self, args, true);
  if (found < 0) fail("substring not found");
  return Value::integer(found);
}

Value count(Interpreter& in, const Value& self, const Bound& args) {
  const std::string& needle = text_argument(args, 0, "must be str: argument 1");
  size_t begin = 0;
  size_t end = 0;
  in.heap().step_bytes(self.text().size());
  if (!bounds(self, args, 1, &begin, &end)) return Value::integer(0);
  const std::string_view part =
      std::string_view(self.text()).substr(begin, end - begin);
  if (needle.empty()) {
    return Value::integer(static_cast<int64_t>(count_code_points(part)) + 1);
  }
  int64_t total = 0;
  for (size_t at = find_text(part, needle); at != std::string_view::npos;
       at = find_text(part, needle, at + needle.size())) {
    ++total;
  }
  return Value::integer(total);
}

// startswith and endswith: one text or a tuple of them.
Value has_affix(Interpreter& in,
                const Value& self,
                const Bound& args,
                bool at_end,
                const char* name) {
  Values candidates;
  if (args.at(0).is(Kind::kTuple)) {
    candidates = args.at(0).as<ListObject>().items;
  } else {
    candidates.push_back(args.at(0));
  }
  size_t begin = 0;
  size_t end = 0;
  const bool inside = bounds(self, args, 1, &begin, &end);
  for (const Value& candidate : candidates) {
    in.heap().step();
    if (!candidate.is_string()) {
      fail(std::string(name) +
           " first arg must be str or a tuple of str, not " +
           type_name(candidate));
    }
    if (!inside) continue;
    const std::string_view part =
        std::string_view(self.text()).substr(begin, end - begin);
    const std::string& affix = candidate.text();
    if (affix.size() > part.size()) continue;
    const size_t from = at_end ? part.size() - affix.size() : 0;
    if (part.substr(from, affix.size()) == affix) return Value::boolean(true);
  }
  return Value::boolean(false);
}

Value startswith(Interpreter& in, const Value& self, const Bound& args) {
  return has_affix(in, self, args, false, "startswith");
}
Value endswith(Interpreter& in, const Value& self, const Bound& args) {
  return has_affix(in, self, args, true, "endswith");
}

Value pieces(Interpreter& in, const std::vector<std::string_view>& parts) {
  Values out;
  out.reserve(parts.size());
  for (const std::string_view part : parts) {
    out.push_back(in.text(std::string(part)));
  }
  return make_list(in.heap(), std::move(out));
}

void add_piece(Interpreter& in,
               std::vector<std::string_view>* parts,
               std::string_view part) {
  in.heap().step();
  in.heap().check_room(parts->size() * 96);
  parts->push_back(part);
}

// Words between white space; `left` splits at most.
std::vector<std::string_view> split_space(Interpreter& in,
                                          std::string_view text,
                                          int64_t left) {
  std::vector<std::string_view> out;
  text = strip_left(text);
  while (!text.empty()) {
    if (left == 0) {
      add_piece(in, &out, text);
      break;
    }
    size_t end = 0;
    while (end < text.size()) {
      size_t next = end;
      if (is_space(next_code_point(text, &next))) break;
      end = next;
    }
    add_piece(in, &out, text.substr(0, end));
    text = strip_left(text.substr(end));
    --left;
  }
  return out;
}

std::vector<std::string_view> rsplit_space(Interpreter& in,
                                           std::string_view text,
                                           int64_t left) {
  std::vector<std::string_view> out;
  text = strip_right(text);
  while (!text.empty()) {
    if (left == 0) {
      add_piece(in, &out, text);
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      size_t at = begin - 1;
      while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) {
        --at;
      }
      size_t next = at;
      if (is_space(next_code_point(text, &next))) break;
      begin = at;
    }
    add_piece(in, &out, text.substr(begin));
    text = strip_right(text.substr(0, begin));
    --left;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> split_at(Interpreter& in,
                                       std::string_view text,
                                       const std::string& separator,
                                       int64_t left,
                                       bool backwards) {
  if (separator.empty()) fail("empty separator");
  std::vector<std::string_view> out;
  for (; left != 0; --left) {
    // A long separator costs a pass over the rest from behind.
    if (backwards && separator.size() > 16) in.heap().step_bytes(text.size());
    const size_t found = backwards ? find_last_text(text, separator)
                                   : find_text(text, separator);
    if (found == std::string_view::npos) break;
    const size_t after = found + separator.size();
    if (backwards) {
      add_piece(in, &out, text.substr(after));
      text = text.substr(0, found);
    } else {
      add_piece(in, &out, text.substr(0, found));
      text = text.substr(after);
    }
  }
  add_piece(in, &out, text);
  if (backwards) std::reverse(out.begin(), out.end());
  return out;
}

Value split_any(Interpreter& in,
                const Value& self,
                const Bound& args,
                bool backwards) {
  const int64_t left = args.has(1) ? to_index(args.at(1), "maxsplit") : -1;
  in.heap().step_bytes(self.text().size());
  if (args.is_none(0)) {
    return pieces(in,
                  backwards ? rsplit_space(in, self.text(), left)
                            : split_space(in, self.text(), left));
  }
  const std::string& separator = text_argument(args, 0, "the separator");
  return pieces(in, split_at(in, self.text(), separator, left, backwards));
}

Value split(Interpreter& in, const Value& self, const Bound& args) {
  return split_any(in, self, args, false);
}
Value rsplit(Interpreter& in, const Value& self, const Bound& args) {
  return split_any(in, self, args, true);
}

Value splitlines(Interpreter& in, const Value& self, const Bound& args) {
  const std::string_view text = self.text();
  const bool keep = args.truth(0);
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = next_code_point(text, &at);
    if (!is_line_end(c)) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    add_piece(in, &out, text.substr(begin, (keep ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) add_piece(in, &out, text.substr(begin));
  return pieces(in, out);
}

Value partition_at(Interpreter& in,
                   const Value& self,
                   const Bound& args,
                   bool backwards) {
  const std::string& separator = text_argument(args, 0, "the separator");
  if (separator.empty()) fail("empty separator");
  const std::string& text = self.text();
  in.heap().step_bytes(text.size());
  const size_t found =
      backwards ? find_last_text(text, separator) : find_text(text, separator);
  Values out;
  if (found == std::string::npos) {
    out = {in.text(""), in.text("")};
    out.insert(backwards ? out.end() : out.begin(), self);
  } else {
    out = {in.text(text.substr(0, found)),
           in.text(separator),
           in.text(text.substr(found + separator.size()))};
  }
  return make_tuple(in.heap(), std::move(out));
}

Value partition(Interpreter& in, const Value& self, const Bound& args) {
  return partition_at(in, self, args, false);
}
Value rpartition(Interpreter& in, const Value& self, const Bound& args) {
  return partition_at(in, self, args, true);
}

Value join(Interpreter& in, const Value& self, const Bound& args) {
  if (!Iteration::possible(args.at(0))) fail("can only join an iterable");
  Iteration source(in.heap(), args.at(0));
  Sink out(in.heap());
  Value item;
  for (int64_t i = 0; source.next(&item); ++i) {
    if (!item.is_string()) {
      fail("sequence item " + std::to_string(i) + ": expected str instance, " +
           type_name(item) + " found");
    }
    if (i > 0) out.append(self.text());
    out.append(item.text());
  }
  return in.text(out.take());
}

Value format(Interpreter& in, const Value& self, const Bound& args) {
  return format_braces(in, self, *args.raw);
}

Value format_map(Interpreter& in, const Value& self, const Bound& args) {
  if (!args.at(0).is(Kind::kDict)) fail("format_map() needs a mapping");
  Args named;
  for (const auto& entry : args.at(0).as<DictObject>().entries()) {
    if (entry.key.is_string()) {
      named.keyword.emplace_back(entry.key.text(), entry.value);
    }
  }
  return format_braces(in, self, named);
}

constexpr Builtin kMethods[] = {
    {"find", "/sub,start,end", 1, find},
    {"rfind", "/sub,start,end", 1, rfind},
    {"index", "/sub,start,end", 1, index},
    {"rindex", "/sub,start,end", 1, rindex},
    {"count", "/sub,start,end", 1, count},
    {"startswith", "/prefix,start,end", 1, startswith},
    {"endswith", "/suffix,start,end", 1, endswith},
    {"split", "sep,maxsplit", 0, split},
    {"rsplit", "sep,maxsplit", 0, rsplit},
    {"splitlines", "keepends", 0, splitlines},
    {"partition", "/sep", 1, partition},
    {"rpartition", "/sep", 1, rpartition},
    {"join", "/iterable", 1, join},
    {"format", "*", 0, format},
    {"format_map", "/mapping", 1, format_map},
};

}  // namespace

BuiltinTable text_search_methods() {
  return {kMethods, std::size(kMethods)};
}

}  // namespace mlx_flash::jinja
