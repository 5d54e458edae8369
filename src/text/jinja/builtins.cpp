// SPDX-License-Identifier: MIT
#include "text/jinja/builtins.h"

#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

// The names between commas, in order.
class ParameterNames {
 public:
  explicit ParameterNames(std::string_view list) : rest_(list) {}
  bool next(std::string_view* name) {
    if (rest_.empty()) return false;
    const size_t comma = rest_.find(',');
    *name = rest_.substr(0, comma);
    rest_ = comma == std::string_view::npos ? std::string_view()
                                            : rest_.substr(comma + 1);
    return true;
  }

 private:
  std::string_view rest_;
};

void bind_keyword(const Builtin& builtin,
                  std::string_view list,
                  const std::pair<std::string, Value>& given,
                  Bound* bound) {
  ParameterNames names(list);
  std::string_view name;
  for (size_t i = 0; names.next(&name); ++i) {
    if (name != given.first) continue;
    if (bound->values[i]) {
      fail(std::string(builtin.name) + "() got multiple values for argument '" +
           given.first + "'");
    }
    bound->values[i] = &given.second;
    return;
  }
  fail(std::string(builtin.name) + "() got an unexpected keyword argument '" +
       given.first + "'");
}

}  // namespace

const Builtin* find_builtin(const BuiltinTable& table, std::string_view name) {
  for (size_t i = 0; i < table.size; ++i) {
    if (name == table.begin[i].name) return &table.begin[i];
  }
  return nullptr;
}

Value call_builtin(Interpreter& interpreter,
                   const Builtin& builtin,
                   const Value& self,
                   const Args& args) {
  Bound bound;
  bound.raw = &args;
  std::string_view list = builtin.parameters;
  if (list == "*") return builtin.function(interpreter, self, bound);
  const bool positional_only = !list.empty() && list[0] == '/';
  if (positional_only) list.remove_prefix(1);
  size_t count = 0;
  std::string_view name;
  for (ParameterNames names(list); names.next(&name);) ++count;
  if (args.positional.size() > count) {
    fail(std::string(builtin.name) + "() takes at most " +
         std::to_string(count) + " argument(s), got " +
         std::to_string(args.positional.size()));
  }
  for (size_t i = 0; i < args.positional.size(); ++i) {
    bound.values[i] = &args.positional[i];
  }
  if (positional_only && !args.keyword.empty()) {
    fail(std::string(builtin.name) + "() takes no keyword arguments");
  }
  for (const auto& given : args.keyword) {
    bind_keyword(builtin, list, given, &bound);
  }
  for (size_t i = 0; i < builtin.required; ++i) {
    if (!bound.has(i)) {
      fail(std::string(builtin.name) + "() misses argument " +
           std::to_string(i + 1));
    }
  }
  return builtin.function(interpreter, self, bound);
}

const Builtin* find_filter(std::string_view name) {
  for (const BuiltinTable& table :
       {text_filters(), sequence_filters(), value_filters()}) {
    if (const Builtin* found = find_builtin(table, name)) return found;
  }
  return nullptr;
}

bool is_filter(std::string_view name) {
  return find_filter(name) != nullptr;
}

bool is_test(std::string_view name) {
  return find_test(name) != nullptr;
}

Value run_filter(Interpreter& in,
                 const std::string& name,
                 const Value& value,
                 const Args& args) {
  const Builtin* filter = find_filter(name);
  if (!filter) fail("No filter named '" + name + "'.");
  return call_builtin(in, *filter, value, args);
}

bool run_test(Interpreter& in,
              const std::string& name,
              const Value& value,
              const Args& args) {
  const Builtin* test = find_test(name);
  if (!test) fail("No test named '" + name + "'.");
  return is_true(call_builtin(in, *test, value, args));
}

std::string str_of(Interpreter& in, const Value& value) {
  return to_str(in.heap(), value);
}

Value slice_characters(Interpreter& in,
                       const Value& text,
                       size_t from,
                       size_t to) {
  return slice(in.heap(),
               text,
               Value::integer(static_cast<int64_t>(from)),
               Value::integer(static_cast<int64_t>(to)),
               Value::none());
}

Value attribute_path(Interpreter& in, const Value& item, const Value& path) {
  if (path.is_none()) return item;
  if (!path.is_string()) return in.get_item(item, path);
  Value out = item;
  std::string_view rest = path.text();
  for (;;) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    bool is_number_part = !part.empty() && part.size() < 18;
    for (const char c : part) is_number_part &= c >= '0' && c <= '9';
    out = in.get_item(
        out, is_number_part ? Value::integer(std::stoll(part)) : in.text(part));
    if (dot == std::string_view::npos) return out;
    rest = rest.substr(dot + 1);
  }
}

}  // namespace mlx_flash::jinja
