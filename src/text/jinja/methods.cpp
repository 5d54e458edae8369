// SPDX-License-Identifier: MIT
// Methods of dicts, lists, loops and the rest, and which type has which.
#include <cmath>
#include <iterator>

#include "text/jinja/builtins.h"

namespace mlx_flash::jinja {
namespace {

Value view(Interpreter& in, const Value& self, DictViewObject::Part part) {
  return Value(Kind::kDictView, new DictViewObject(&in.heap(), self, part));
}

Value keys(Interpreter& in, const Value& self, const Bound&) {
  return view(in, self, DictViewObject::Part::kKeys);
}
Value values(Interpreter& in, const Value& self, const Bound&) {
  return view(in, self, DictViewObject::Part::kValues);
}
Value items(Interpreter& in, const Value& self, const Bound&) {
  return view(in, self, DictViewObject::Part::kItems);
}
Value get(Interpreter&, const Value& self, const Bound& args) {
  if (const Value* found = self.as<DictObject>().find(args.at(0))) {
    return *found;
  }
  return args.has(1) ? args.at(1) : Value::none();
}
Value copy(Interpreter& in, const Value& self, const Bound&) {
  if (self.is(Kind::kList)) {
    return make_list(in.heap(), self.as<ListObject>().items);
  }
  Value out(Kind::kDict, new DictObject(&in.heap()));
  for (const auto& entry : self.as<DictObject>().entries()) {
    out.as<DictObject>().set(entry.key, entry.value);
  }
  return out;
}

Value fromkeys(Interpreter& in, const Value&, const Bound& args) {
  const Value value = args.has(1) ? args.at(1) : Value::none();
  Value out(Kind::kDict, new DictObject(&in.heap()));
  Iteration names(in.heap(), args.at(0));
  Value name;
  while (names.next(&name)) out.as<DictObject>().set(name, value);
  return out;
}

Value count(Interpreter& in, const Value& self, const Bound& args) {
  Iteration source(in.heap(), self);
  int64_t total = 0;
  Value item;
  while (source.next(&item)) {
    total += equals(in.heap(), item, args.at(0)) ? 1 : 0;
  }
  return Value::integer(total);
}

Value index(Interpreter& in, const Value& self, const Bound& args) {
  const int64_t size = length(self);
  int64_t start = args.has(1) ? to_index(args.at(1), "start") : 0;
  int64_t stop = args.has(2) ? to_index(args.at(2), "stop") : size;
  if (start < 0) start = std::max<int64_t>(start + size, 0);
  if (stop < 0) stop += size;
  Iteration source(in.heap(), self);
  Value item;
  for (int64_t i = 0; source.next(&item) && i < stop; ++i) {
    if (i >= start && equals(in.heap(), item, args.at(0))) {
      return Value::integer(i);
    }
  }
  fail("the value is not in the " + std::string(type_name(self)));
}

Value cycle(Interpreter&, const Value& self, const Bound& args) {
  const Values& choices = args.raw->positional;
  if (choices.empty()) fail("no items for cycling given");
  const auto at = static_cast<size_t>(self.as<LoopObject>().index0);
  return choices[at % choices.size()];
}

Value changed(Interpreter& in, const Value& self, const Bound& args) {
  auto& loop = self.as<LoopObject>();
  Value now = make_tuple(in.heap(), args.raw->positional);
  if (loop.has_changed_value && equals(in.heap(), loop.changed_value, now)) {
    return Value::boolean(false);
  }
  loop.has_changed_value = true;
  loop.changed_value = std::move(now);
  return Value::boolean(true);
}

Value next(Interpreter&, const Value& self, const Bound&) {
  auto& cycler = self.as<CyclerObject>();
  Value out = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return out;
}
Value reset(Interpreter&, const Value& self, const Bound&) {
  self.as<CyclerObject>().position = 0;
  return Value::none();
}

Value is_integer(Interpreter&, const Value& self, const Bound&) {
  const double value = self.as_float();
  return Value::boolean(std::isfinite(value) && std::floor(value) == value);
}

Value bit_length(Interpreter&, const Value& self, const Bound&) {
  const int64_t value =
      self.is(Kind::kBool) ? (self.as_bool() ? 1 : 0) : self.as_int();
  uint64_t rest = static_cast<uint64_t>(value);
  if (value < 0) rest = ~rest + 1;
  int64_t bits = 0;
  for (; rest != 0; rest >>= 1) ++bits;
  return Value::integer(bits);
}

constexpr Builtin kDictMethods[] = {
    {"keys", "/", 0, keys},
    {"values", "/", 0, values},
    {"items", "/", 0, items},
    {"get", "/key,default", 1, get},
    {"copy", "/", 0, copy},
    {"fromkeys", "/iterable,value", 1, fromkeys},
};
constexpr Builtin kListMethods[] = {
    {"index", "/value,start,stop", 1, index},
    {"count", "/value", 1, count},
    {"copy", "/", 0, copy},
};
constexpr Builtin kTupleMethods[] = {
    {"index", "/value,start,stop", 1, index},
    {"count", "/value", 1, count},
};
constexpr Builtin kLoopMethods[] = {
    {"cycle", "*", 0, cycle},
    {"changed", "*", 0, changed},
};
constexpr Builtin kCyclerMethods[] = {
    {"next", "/", 0, next},
    {"reset", "/", 0, reset},
};
constexpr Builtin kFloatMethods[] = {
    {"is_integer", "/", 0, is_integer},
};
constexpr Builtin kIntMethods[] = {
    {"bit_length", "/", 0, bit_length},
};

}  // namespace

const Builtin* find_method(const Value& object, std::string_view name) {
  switch (object.kind()) {
    case Kind::kString:
      if (const Builtin* found = find_builtin(text_methods(), name)) {
        return found;
      }
      return find_builtin(text_search_methods(), name);
    case Kind::kDict:
      return find_builtin({kDictMethods, std::size(kDictMethods)}, name);
    case Kind::kList:
      return find_builtin({kListMethods, std::size(kListMethods)}, name);
    case Kind::kTuple:
    case Kind::kRange:
      return find_builtin({kTupleMethods, std::size(kTupleMethods)}, name);
    case Kind::kLoop:
      return find_builtin({kLoopMethods, std::size(kLoopMethods)}, name);
    case Kind::kCycler:
      return find_builtin({kCyclerMethods, std::size(kCyclerMethods)}, name);
    case Kind::kFloat:
      return find_builtin({kFloatMethods, std::size(kFloatMethods)}, name);
    case Kind::kInt:
    case Kind::kBool:
      return find_builtin({kIntMethods, std::size(kIntMethods)}, name);
    case Kind::kFunction:
      // The global dict() has one method, fromkeys.
      if (object.as<FunctionObject>().name == "dict" && name == "fromkeys") {
        return find_builtin({kDictMethods, std::size(kDictMethods)}, name);
      }
      return nullptr;
    default:
      return nullptr;
  }
}

bool is_mutator(const Value& object, std::string_view name) {
  static constexpr std::string_view kDict[] = {
      "clear", "pop", "popitem", "setdefault", "update"};
  static constexpr std::string_view kList[] = {"append",
                                               "clear",
                                               "pop",
                                               "reverse",
                                               "insert",
                                               "sort",
                                               "extend",
                                               "remove"};
  const auto any = [&](const auto& names) {
    for (const std::string_view candidate : names) {
      if (candidate == name) return true;
    }
    return false;
  };
  if (object.is(Kind::kDict)) return any(kDict);
  return object.is(Kind::kList) && any(kList);
}

}  // namespace mlx_flash::jinja
