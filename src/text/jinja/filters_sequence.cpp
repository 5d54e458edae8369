// SPDX-License-Identifier: MIT
// Filters that work on sequences and mappings. Each follows jinja2/filters.py;
// those that are generators there are lazy iterators here.
#include <algorithm>
#include <iterator>
#include <memory>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

Value no_item(Interpreter& in, const char* message) {
  return make_undefined(in.heap(), message);
}

// Strings in lower case, anything else as it is.
Value ignore_case(Interpreter& in, Value value) {
  if (!value.is_string()) return value;
  return in.text(to_lower(value.text()));
}

Value sort_key(Interpreter& in,
               const Value& item,
               const Value& path,
               bool case_sensitive) {
  Value out = attribute_path(in, item, path);
  return case_sensitive ? out : ignore_case(in, std::move(out));
}

uint32_t depth_of(const Value& self, const Args& args) {
  uint32_t depth = self.depth();
  for (const Value& value : args.positional) {
    depth = std::max(depth, value.depth());
  }
  for (const auto& entry : args.keyword) {
    depth = std::max(depth, entry.second.depth());
  }
  return depth;
}

struct Keyed {
  Value key;
  Value item;
};

// Stable, as Python's; `reverse` keeps the order of equal items too.
void sort_keyed(Heap& heap, std::vector<Keyed>* items, bool reverse) {
  heap.check_room(items->size() * sizeof(Keyed));
  std::stable_sort(
      items->begin(), items->end(), [&](const Keyed& a, const Keyed& b) {
        return reverse ? ordered(heap, b.key, a.key, "<")
                       : ordered(heap, a.key, b.key, "<");
      });
}

Value sort(Interpreter& in, const Value& self, const Bound& args) {
  const Value none = Value::none();
  const Value& path = args.has(2) ? args.at(2) : none;
  std::vector<std::string> parts;  // "a,b" sorts by a, then by b
  if (path.is_string()) {
    std::string_view rest = path.text();
    for (size_t comma = 0; comma != std::string_view::npos;) {
      comma = rest.find(',');
      parts.emplace_back(rest.substr(0, comma));
      if (comma != std::string_view::npos) rest.remove_prefix(comma + 1);
    }
  }
  std::vector<Keyed> items;
  for (Value& item : to_values(in.heap(), self)) {
    Values keys;
    if (parts.empty()) {
      keys.push_back(sort_key(in, item, path, args.truth(1)));
    }
    for (const std::string& part : parts) {
      keys.push_back(sort_key(in, item, in.text(part), args.truth(1)));
    }
    Value key =
        keys.size() == 1 ? keys[0] : make_list(in.heap(), std::move(keys));
    items.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(in.heap(), &items, args.truth(0));
  Values out;
  out.reserve(items.size());
  for (Keyed& item : items) out.push_back(std::move(item.item));
  return make_list(in.heap(), std::move(out));
}

Value dictsort(Interpreter& in, const Value& self, const Bound& args) {
  if (self.is_undefined()) fail_undefined(self);
  if (!self.is(Kind::kDict)) {
    fail(std::string("'") + type_name(self) +
         "' object has no attribute 'items'");
  }
  const std::string by = args.has(1) ? str_of(in, args.at(1)) : "key";
  if (by != "key" && by != "value") {
    fail("You can only sort by either \"key\" or \"value\"");
  }
  std::vector<Keyed> items;
  for (const auto& entry : self.as<DictObject>().entries()) {
    Value key = by == "key" ? entry.key : entry.value;
    if (!args.truth(0)) key = ignore_case(in, std::move(key));
    items.push_back(
        {std::move(key), make_tuple(in.heap(), {entry.key, entry.value})});
  }
  sort_keyed(in.heap(), &items, args.truth(2));
  Values out;
  for (Keyed& item : items) out.push_back(std::move(item.item));
  return make_list(in.heap(), std::move(out));
}

Value items(Interpreter& in, const Value& self, const Bound&) {
  if (self.is_undefined()) {
    return make_iterator(
        in.heap(), [](Value*) { return false; }, "generator", 0);
  }
  // Jinja2 complains when the items are read, which nothing delays for long.
  if (!self.is(Kind::kDict)) fail("Can only get item pairs from a mapping.");
  auto source = std::make_shared<Iteration>(
      in.heap(),
      Value(
          Kind::kDictView,
          new DictViewObject(&in.heap(), self, DictViewObject::Part::kItems)));
  return make_iterator(
      in.heap(),
      [source](Value* item) { return source->next(item); },
      "generator",
      self.depth());
}

Value first(Interpreter& in, const Value& self, const Bound&) {
  Iteration source(in.heap(), self);
  Value item;
  if (source.next(&item)) return item;
  return no_item(in, "No first item, sequence was empty.");
}

// What reversed() takes: sequences and dicts, no iterators.
bool is_reversible(const Value& value) {
  return length_or_none(value) >= 0;
}

Value last(Interpreter& in, const Value& self, const Bound&) {
  if (!is_reversible(self)) {
    fail(std::string("'") + type_name(self) + "' object is not reversible");
  }
  if (length(self) == 0) {
    return no_item(in, "No last item, sequence was empty.");
  }
  Value out;
  if (element(in.heap(), self, -1, &out)) return out;
  return to_values(in.heap(), self).back();
}

Value length_filter(Interpreter&, const Value& self, const Bound&) {
  return Value::integer(length(self));
}

Value list(Interpreter& in, const Value& self, const Bound&) {
  return make_list(in.heap(), to_values(in.heap(), self));
}

Value reverse(Interpreter& in, const Value& self, const Bound&) {
  if (self.is_string()) {
    return slice(
        in.heap(), self, Value::none(), Value::none(), Value::integer(-1));
  }
  Values values = to_values(in.heap(), self);
  std::reverse(values.begin(), values.end());
  if (!is_reversible(self)) return make_list(in.heap(), std::move(values));
  auto source = std::make_shared<Iteration>(
      in.heap(), make_list(in.heap(), std::move(values)));
  return make_iterator(
      in.heap(),
      [source](Value* item) { return source->next(item); },
      self.is(Kind::kList) ? "list_reverseiterator" : "reversed",
      self.depth() + 1);
}

Value join(Interpreter& in, const Value& self, const Bound& args) {
  const std::string separator = args.has(0) ? str_of(in, args.at(0)) : "";
  Iteration source(in.heap(), self);
  Sink out(in.heap());
  Value item;
  bool is_first = true;
  while (source.next(&item)) {
    if (!is_first) out.append(separator);
    is_first = false;
    append_str(out,
               args.is_none(1) ? item : attribute_path(in, item, args.at(1)));
  }
  return in.text(out.take());
}

// "attribute" and "default" of map.
struct AttributeOptions {
  Value path;
  Value fallback = Value::none();
  bool used = false;
};

AttributeOptions attribute_options(const Args& args) {
  AttributeOptions out;
  if (!args.positional.empty()) return out;
  for (const auto& [name, value] : args.keyword) {
    if (name == "attribute") {
      out.path = value;
      out.used = true;
    }
  }
  if (!out.used) return out;
  for (const auto& [name, value] : args.keyword) {
    if (name == "default") {
      out.fallback = value;
    } else if (name != "attribute") {
      fail("Unexpected keyword argument '" + name + "'");
    }
  }
  return out;
}

// make_attrgetter with a default: it replaces every step that is undefined.
Value attribute_or(Interpreter& in,
                   const Value& item,
                   const Value& path,
                   const Value& fallback) {
  if (fallback.is_none() || !path.is_string()) {
    Value out = attribute_path(in, item, path);
    return out.is_undefined() && !fallback.is_none() ? fallback : out;
  }
  Value out = item;
  std::string_view rest = path.text();
  for (;;) {
    const size_t dot = rest.find('.');
    out = attribute_path(in, out, in.text(std::string(rest.substr(0, dot))));
    if (out.is_undefined()) out = fallback;
    if (dot == std::string_view::npos) return out;
    rest = rest.substr(dot + 1);
  }
}

// A generator over `self` that fails, where it must, only once it is read.
Value lazily(Interpreter& in,
             const Value& self,
             uint32_t depth,
             std::function<bool(Iteration&, Value*)> step) {
  auto source = std::make_shared<std::unique_ptr<Iteration>>();
  return make_iterator(
      in.heap(),
      [source, self, step = std::move(step), &in](Value* item) {
        if (!*source) {
          if (!is_true(self)) return false;
          *source = std::make_unique<Iteration>(in.heap(), self);
        }
        return step(**source, item);
      },
      "generator",
      depth);
}

Value map(Interpreter& in, const Value& self, const Bound& bound) {
  const Args args = *bound.raw;
  return lazily(
      in,
      self,
      depth_of(self, args),
      [&in, args](Iteration& source, Value* out) {
        const AttributeOptions options = attribute_options(args);
        if (!options.used && args.positional.empty()) {
          fail("map requires a filter argument");
        }
        Value item;
        if (!source.next(&item)) return false;
        if (options.used) {
          *out = attribute_or(in, item, options.path, options.fallback);
          return true;
        }
        Args rest = args;
        rest.positional.erase(rest.positional.begin());
        *out = run_filter(in, str_of(in, args.positional[0]), item, rest);
        return true;
      });
}

Value select_where(Interpreter& in,
                   const Value& self,
                   const Bound& bound,
                   bool wanted,
                   bool by_attribute) {
  const Args args = *bound.raw;
  return lazily(
      in,
      self,
      depth_of(self, args),
      [&in, args, wanted, by_attribute](Iteration& source, Value* out) {
        const size_t skip = by_attribute ? 1 : 0;
        if (args.positional.size() < skip) {
          fail("Missing parameter for attribute name");
        }
        Value item;
        while (source.next(&item)) {
          const Value tested =
              by_attribute ? attribute_path(in, item, args.positional[0])
                           : item;
          bool result = false;
          if (args.positional.size() == skip) {
            result = is_true(tested);
          } else {
            Args rest = args;
            rest.positional.erase(rest.positional.begin(),
                                  rest.positional.begin() +
                                      static_cast<std::ptrdiff_t>(skip + 1));
            result =
                run_test(in, str_of(in, args.positional[skip]), tested, rest);
          }
          if (result != wanted) continue;
          *out = item;
          return true;
        }
        return false;
      });
}

Value select(Interpreter& in, const Value& self, const Bound& args) {
  return select_where(in, self, args, true, false);
}

Value reject(Interpreter& in, const Value& self, const Bound& args) {
  return select_where(in, self, args, false, false);
}

Value selectattr(Interpreter& in, const Value& self, const Bound& args) {
  return select_where(in, self, args, true, true);
}

Value rejectattr(Interpreter& in, const Value& self, const Bound& args) {
  return select_where(in, self, args, false, true);
}

Value unique(Interpreter& in, const Value& self, const Bound& args) {
  const Value path = args.has(1) ? args.at(1) : Value::none();
  const bool case_sensitive = args.truth(0);
  auto source = std::make_shared<Iteration>(in.heap(), self);
  const Value seen(Kind::kDict, new DictObject(&in.heap()));
  return make_iterator(
      in.heap(),
      [&in, path, case_sensitive, source, seen](Value* out) {
        Value item;
        while (source->next(&item)) {
          const Value key = sort_key(in, item, path, case_sensitive);
          if (seen.as<DictObject>().find(key)) continue;
          seen.as<DictObject>().set(key, Value::none());
          *out = item;
          return true;
        }
        return false;
      },
      "generator",
      self.depth() + 1);
}

Value extreme(Interpreter& in,
              const Value& self,
              const Bound& args,
              const char* symbol) {
  const Value path = args.has(1) ? args.at(1) : Value::none();
  Iteration source(in.heap(), self);
  Value best;
  if (!source.next(&best)) {
    return no_item(in, "No aggregated item, sequence was empty.");
  }
  Value best_key = sort_key(in, best, path, args.truth(0));
  Value item;
  while (source.next(&item)) {
    Value key = sort_key(in, item, path, args.truth(0));
    if (!ordered(in.heap(), key, best_key, symbol)) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return best;
}

Value min(Interpreter& in, const Value& self, const Bound& args) {
  return extreme(in, self, args, "<");
}

Value max(Interpreter& in, const Value& self, const Bound& args) {
  return extreme(in, self, args, ">");
}

Value sum(Interpreter& in, const Value& self, const Bound& args) {
  Value total = args.has(1) ? args.at(1) : Value::integer(0);
  if (total.is_string()) {
    fail("sum() can't sum strings [use ''.join(seq) instead]");
  }
  Iteration source(in.heap(), self);
  Value item;
  while (source.next(&item)) {
    total =
        binary(in.heap(),
               BinaryOp::kAdd,
               total,
               args.is_none(0) ? item : attribute_path(in, item, args.at(0)));
  }
  return total;
}

Value batch(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t size = to_index(args.at(0), "linecount");
  const Value fill = args.has(1) ? args.at(1) : Value::none();
  auto source = std::make_shared<Iteration>(in.heap(), self);
  auto pending = std::make_shared<Values>();
  return make_iterator(
      in.heap(),
      [&in, size, fill, source, pending](Value* out) {
        Values row = std::move(*pending);
        pending->clear();
        Value item;
        bool more = false;
        while (source->next(&item)) {
          if (static_cast<int64_t>(row.size()) == size) {
            pending->push_back(std::move(item));
            more = true;
            break;
          }
          in.heap().check_room(row.size() * sizeof(Value));
          row.push_back(std::move(item));
        }
        if (!more && row.empty()) return false;
        if (!more && !fill.is_none()) {
          const auto wanted = static_cast<size_t>(std::max<int64_t>(size, 0));
          while (row.size() < wanted) {
            in.heap().step();
            in.heap().check_room(row.size() * sizeof(Value));
            row.push_back(fill);
          }
        }
        *out = make_list(in.heap(), std::move(row));
        return true;
      },
      "generator",
      std::max(self.depth(), fill.depth()) + 1);
}

Value slice_filter(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t count = to_index(args.at(0), "slices");
  const Value fill = args.has(1) ? args.at(1) : Value::none();
  const Values all = to_values(in.heap(), self);
  if (count == 0) fail("integer division or modulo by zero");
  Values out;
  if (count > 1'000'000) fail("too many slices");
  const size_t columns = count > 0 ? static_cast<size_t>(count) : 0;
  size_t at = 0;
  for (size_t i = 0; i < columns; ++i) {
    const bool extra = i < all.size() % columns;
    const size_t size = all.size() / columns + (extra ? 1 : 0);
    Values column(all.begin() + static_cast<std::ptrdiff_t>(at),
                  all.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
    if (!fill.is_none() && !extra) column.push_back(fill);
    out.push_back(make_list(in.heap(), std::move(column)));
  }
  auto source = std::make_shared<Iteration>(
      in.heap(), make_list(in.heap(), std::move(out)));
  return make_iterator(
      in.heap(),
      [source](Value* item) { return source->next(item); },
      "generator",
      source->depth());
}

Value groupby(Interpreter& in, const Value& self, const Bound& args) {
  const Value fallback = args.has(1) ? args.at(1) : Value::none();
  const bool case_sensitive = args.truth(2);
  std::vector<Keyed> keyed;
  for (Value& item : to_values(in.heap(), self)) {
    Value key = attribute_or(in, item, args.at(0), fallback);
    if (!case_sensitive) key = ignore_case(in, std::move(key));
    keyed.push_back({std::move(key), std::move(item)});
  }
  sort_keyed(in.heap(), &keyed, false);
  Values groups;
  for (size_t begin = 0; begin < keyed.size();) {
    Values members;
    size_t end = begin;
    for (; end < keyed.size() &&
           equals(in.heap(), keyed[begin].key, keyed[end].key);
         ++end) {
      members.push_back(keyed[end].item);
    }
    if (end == begin) ++end;  // a key that differs from itself (NaN)
    const Value grouper =
        attribute_or(in, keyed[begin].item, args.at(0), fallback);
    Value group = make_tuple(
        in.heap(), {grouper, make_list(in.heap(), std::move(members))});
    group.as<ListObject>().is_group = true;
    groups.push_back(std::move(group));
    begin = end;
  }
  return make_list(in.heap(), std::move(groups));
}

constexpr Builtin kFilters[] = {
    {"sort", "reverse,case_sensitive,attribute", 0, sort},
    {"dictsort", "case_sensitive,by,reverse", 0, dictsort},
    {"items", "", 0, items},
    {"first", "", 0, first},
    {"last", "", 0, last},
    {"length", "", 0, length_filter},
    {"count", "", 0, length_filter},
    {"list", "", 0, list},
    {"reverse", "", 0, reverse},
    {"join", "d,attribute", 0, join},
    {"map", "*", 0, map},
    {"select", "*", 0, select},
    {"reject", "*", 0, reject},
    {"selectattr", "*", 0, selectattr},
    {"rejectattr", "*", 0, rejectattr},
    {"unique", "case_sensitive,attribute", 0, unique},
    {"min", "case_sensitive,attribute", 0, min},
    {"max", "case_sensitive,attribute", 0, max},
    {"sum", "attribute,start", 0, sum},
    {"batch", "linecount,fill_with", 1, batch},
    {"slice", "slices,fill_with", 1, slice_filter},
    {"groupby", "attribute,default,case_sensitive", 1, groupby},
};

}  // namespace

BuiltinTable sequence_filters() {
  return {kFilters, std::size(kFilters)};
}

}  // namespace mlx_flash::jinja
