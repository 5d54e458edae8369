// SPDX-License-Identifier: MIT
// Functions that every template can call.
#include <iterator>

#include "text/jinja/builtins.h"

namespace mlx_flash::jinja {
namespace {

constexpr size_t kRangeMax = 100'000;  // the sandbox's MAX_RANGE

Value range(Interpreter& in, const Args& args) {
  const size_t count = args.positional.size();
  if (!args.keyword.empty()) fail("range() takes no keyword arguments");
  if (count < 1 || count > 3) fail("range expected 1 to 3 arguments");
  int64_t parts[3] = {0, 0, 1};
  for (size_t i = 0; i < count; ++i) {
    if (args.positional[i].is_undefined()) fail_undefined(args.positional[i]);
    parts[count == 1 ? 1 : i] =
        to_index(args.positional[i], "range() argument");
  }
  if (parts[2] == 0) fail("range() arg 3 must not be zero");
  Value out(Kind::kRange,
            new RangeObject(&in.heap(), parts[0], parts[1], parts[2]));
  if (out.as<RangeObject>().size() > kRangeMax) {
    fail(
        "Range too big. The sandbox blocks ranges larger than MAX_RANGE "
        "(100000).");
  }
  return out;
}

// dict(mapping or pairs, name=value, ...)
Value dict(Interpreter& in, const Args& args) {
  Value out(Kind::kDict, new DictObject(&in.heap()));
  auto& made = out.as<DictObject>();
  if (args.positional.size() > 1) fail("dict expected at most 1 argument");
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is_undefined()) {
      // Python asks an undefined value for keys(), which raises.
      fail_undefined(source);
    }
    if (source.is(Kind::kDict)) {
      for (const auto& entry : source.as<DictObject>().entries()) {
        made.set(entry.key, entry.value);
      }
    } else {
      Iteration pairs(in.heap(), source);
      Value pair;
      while (pairs.next(&pair)) {
        const Values parts = to_values(in.heap(), pair);
        if (parts.size() != 2) fail("dict() needs pairs of key and value");
        made.set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : args.keyword) {
    made.set(in.text(name), value);
  }
  return out;
}

Value make_namespace(Interpreter& in, const Args& args) {
  const Value fields = dict(in, args);
  auto* object = new NamespaceObject(&in.heap());
  Value out = in.hold(Kind::kNamespace, object);
  for (const auto& entry : fields.as<DictObject>().entries()) {
    if (!entry.key.is_string()) continue;
    const std::string& name = entry.key.text();
    if (!name.empty() && name[0] == '_') {
      fail(
          "Chat templates cannot store underscore-prefixed attributes on a "
          "namespace, but got '" +
          name + "'. Please rename the attribute.");
    }
    object->set(name, entry.value);
  }
  return out;
}

Value cycler(Interpreter& in, const Args& args) {
  if (args.positional.empty()) fail("at least one item has to be provided");
  return in.hold(Kind::kCycler, new CyclerObject(&in.heap(), args.positional));
}

Value joiner(Interpreter& in, const Args& args) {
  Value separator = in.text(", ");
  if (!args.positional.empty()) separator = args.positional[0];
  for (const auto& [name, value] : args.keyword) {
    if (name != "sep") fail("joiner() takes only the argument sep");
    separator = value;
  }
  return Value(Kind::kJoiner, new JoinerObject(&in.heap(), separator));
}

const Value& only_argument(const Args& args, const char* name, const char* of) {
  if (args.positional.size() == 1 && args.keyword.empty()) {
    return args.positional[0];
  }
  if (args.positional.empty() && args.keyword.size() == 1 &&
      args.keyword[0].first == name) {
    return args.keyword[0].second;
  }
  fail(std::string(of) + "() takes exactly one argument");
}

Value raise_exception(Interpreter& in, const Args& args) {
  fail(str_of(in, only_argument(args, "message", "raise_exception")));
}

Value strftime_now(Interpreter& in, const Args& args) {
  const Value& format = only_argument(args, "format", "strftime_now");
  if (!format.is_string()) fail("strftime() argument 1 must be str");
  return in.text(in.now(format.text()));
}

constexpr GlobalFunction kGlobals[] = {
    {"range", range},
    {"dict", dict},
    {"namespace", make_namespace},
    {"cycler", cycler},
    {"joiner", joiner},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
};

}  // namespace

const GlobalFunction* global_function(size_t index) {
  return index < std::size(kGlobals) ? &kGlobals[index] : nullptr;
}

}  // namespace mlx_flash::jinja
