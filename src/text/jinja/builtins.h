// SPDX-License-Identifier: MIT
#pragma once

// The functions templates can name: filters, tests, methods, globals.
// Tables are constant; functions keep no state.

#include <cstddef>
#include <string>
#include <string_view>

#include "text/jinja/interpreter.h"

namespace mlx_flash::jinja {

constexpr size_t kParametersMax = 7;

// Arguments after they were matched with the parameters of a Builtin.
struct Bound {
  const Value* values[kParametersMax] = {};  // null where absent
  const Args* raw = nullptr;

  bool has(size_t i) const { return values[i] != nullptr; }
  bool is_none(size_t i) const { return !has(i) || values[i]->is_none(); }
  const Value& at(size_t i) const { return *values[i]; }
  bool truth(size_t i) const { return has(i) && is_true(at(i)); }
};

// One filter, test or method. `self` is what stands on the left.
struct Builtin {
  using Function = Value (*)(Interpreter&, const Value& self, const Bound&);
  const char* name;
  // Parameter names, comma separated; "/" in front refuses keywords, "*" takes
  // any arguments as they are.
  const char* parameters;
  size_t required;
  Function function;
};

struct BuiltinTable {
  const Builtin* begin;
  size_t size;
};

const Builtin* find_builtin(const BuiltinTable& table, std::string_view name);

// Fails with Python's kind of message when the arguments do not fit.
Value call_builtin(Interpreter& interpreter,
                   const Builtin& builtin,
                   const Value& self,
                   const Args& args);

const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
// The method of the type of `object`; null when it has none.
const Builtin* find_method(const Value& object, std::string_view name);
// Python methods that change their object: the sandbox hides them.
bool is_mutator(const Value& object, std::string_view name);

bool is_filter(std::string_view name);
bool is_test(std::string_view name);

// Filters by what they work on.
BuiltinTable text_filters();
BuiltinTable sequence_filters();
BuiltinTable value_filters();
BuiltinTable text_methods();
BuiltinTable text_search_methods();

// range, dict, namespace, raise_exception, ...; undefined when unknown.
// `index` counts from 0; null behind the last.
struct GlobalFunction {
  const char* name;
  Value (*function)(Interpreter&, const Args&);
};
const GlobalFunction* global_function(size_t index);

// Helpers shared by the tables.
std::string str_of(Interpreter& in, const Value& value);  // soft_str
Value slice_characters(Interpreter& in,
                       const Value& text,
                       size_t from,
                       size_t to);
// Applies a path like "function.name" or 0; undefined where it ends early.
Value attribute_path(Interpreter& in, const Value& item, const Value& path);
std::string escape_html(Interpreter& in, const Value& value);
bool run_test(Interpreter& in,
              const std::string& name,
              const Value& value,
              const Args& args);
Value run_filter(Interpreter& in,
                 const std::string& name,
                 const Value& value,
                 const Args& args);
// str.format with the fields' values.
Value format_braces(Interpreter& in, const Value& format, const Args& args);
[[noreturn]] void fail_undefined(const Value& value);

}  // namespace mlx_flash::jinja
