// SPDX-License-Identifier: MIT
// Calls of macros, loops and built-in functions, and the properties of loops,
// macros and namespaces.
#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/interpreter_guards.h"

namespace mlx_flash::jinja {
namespace {

const std::string kCallerName = "caller";
const std::string kKwargsName = "kwargs";
const std::string kVarargsName = "varargs";

class CallGuard {
 public:
  CallGuard(uint32_t* depth, uint32_t depth_max) : depth_(depth) {
    if (*depth_ >= depth_max) fail("maximum recursion depth exceeded");
    ++*depth_;
  }
  ~CallGuard() { --*depth_; }

 private:
  uint32_t* depth_;
};

// Removes and returns the keyword argument `name`.
bool take_keyword(std::vector<std::pair<std::string, Value>>* keyword,
                  const std::string& name,
                  Value* out) {
  const auto it =
      std::find_if(keyword->begin(), keyword->end(), [&](const auto& entry) {
        return entry.first == name;
      });
  if (it == keyword->end()) return false;
  *out = std::move(it->second);
  keyword->erase(it);
  return true;
}

}  // namespace

MacroObject::MacroObject(Heap* heap,
                         const MacroCode* its_code,
                         Ref<Scope> its_scope)
    : ScopedObject(heap), code(its_code), scope(std::move(its_scope)) {
  charge(sizeof(MacroObject) + 16);
}

LoopObject::LoopObject(Heap* heap,
                       const Statement* of,
                       Value iterable,
                       Ref<Scope> where,
                       int64_t depth)
    : ScopedObject(heap),
      statement(of),
      scope(std::move(where)),
      depth0(depth),
      iterable_(iterable),
      items_(*heap, std::move(iterable)) {
  charge(sizeof(LoopObject) + 16);
}

void LoopObject::forget() {
  scope = Ref<Scope>();
  current = before = changed_value = iterable_ = Value();
  items_ = Iteration(*heap(), Value());
  ahead_.clear();
}

bool LoopObject::next(Value* item) {
  if (ahead_at_ < ahead_.size()) {
    *item = std::move(ahead_[ahead_at_++]);
    if (ahead_at_ == ahead_.size()) {
      ahead_.clear();
      ahead_at_ = 0;
    }
  } else if (!items_.next(item)) {
    return false;
  }
  ++index0;
  before = std::move(current);
  current = *item;
  return true;
}

bool LoopObject::peek(Value* item) {
  if (ahead_at_ == ahead_.size()) {
    Value read;
    if (!items_.next(&read)) return false;
    ahead_.push_back(std::move(read));
  }
  *item = ahead_[ahead_at_];
  return true;
}

int64_t LoopObject::length() {
  if (length_ >= 0) return length_;
  length_ = length_or_none(iterable_);
  if (length_ >= 0) return length_;
  Value read;
  while (items_.next(&read)) {
    charge(sizeof(Value));
    ahead_.push_back(std::move(read));
  }
  length_ = static_cast<int64_t>(ahead_.size() - ahead_at_) + index0 + 1;
  return length_;
}

Value Interpreter::call(const Value& callee, const Args& args) {
  switch (callee.kind()) {
    case Kind::kFunction:
      return callee.as<FunctionObject>().body(*this, args);
    case Kind::kMacro:
      return call_macro(callee.as<MacroObject>(), args);
    case Kind::kLoop:
      return call_loop(callee.as<LoopObject>(), args);
    case Kind::kJoiner: {
      auto& joiner = callee.as<JoinerObject>();
      if (joiner.used) return joiner.separator;
      joiner.used = true;
      return text("");
    }
    case Kind::kUndefined:
      fail_undefined(callee);
    default:
      fail(std::string("'") + type_name(callee) + "' object is not callable");
  }
}

Value Interpreter::call_macro(const MacroObject& macro, const Args& args) {
  const CallGuard guard(&call_depth_, heap_.limits().call_depth_max);
  const DepthGuard depth(this);
  // The macro may be replaced while it runs.
  const MacroCode& code = *macro.code;
  const Ref<Scope> inner(new Scope(&heap_, macro.scope));
  const ScopeGuard scope(this, inner);
  bind_parameters(code, args, inner.get());
  begin_capture();
  execute(code.body);
  return text(end_capture());
}

void Interpreter::bind_parameters(const MacroCode& code,
                                  const Args& args,
                                  Scope* scope) {
  const size_t count = code.parameters.size();
  auto keyword = args.keyword;
  std::vector<bool> given(count, false);
  for (size_t i = 0; i < count; ++i) {
    Value value;
    if (i < args.positional.size()) {
      value = args.positional[i];
    } else if (!take_keyword(&keyword, code.parameters[i], &value)) {
      continue;
    }
    given[i] = true;
    scope->set(code.parameters[i], std::move(value));
  }
  if (code.takes_caller) {
    Value caller;
    if (!take_keyword(&keyword, kCallerName, &caller)) {
      caller = make_undefined(heap_, "No caller defined");
    }
    scope->set(kCallerName, std::move(caller));
  }
  if (code.takes_kwargs) {
    Value rest(Kind::kDict, new DictObject(&heap_));
    for (auto& [name, value] : keyword) {
      rest.as<DictObject>().set(text(name), std::move(value));
    }
    scope->set(kKwargsName, std::move(rest));
  } else if (!keyword.empty()) {
    fail("macro '" + code.name + "' takes no keyword argument '" +
         keyword[0].first + "'");
  }
  const size_t taken = std::min(count, args.positional.size());
  if (code.takes_varargs) {
    Values rest(args.positional.begin() + static_cast<std::ptrdiff_t>(taken),
                args.positional.end());
    scope->set(kVarargsName, make_tuple(heap_, std::move(rest)));
  } else if (args.positional.size() > count) {
    fail("macro '" + code.name + "' takes not more than " +
         std::to_string(count) + " argument(s)");
  }
  const size_t required = count - code.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    if (given[i]) continue;
    const std::string& name = code.parameters[i];
    scope->set(name,
               i >= required
                   ? evaluate(*code.defaults[i - required])
                   : make_undefined(
                         heap_, "parameter '" + name + "' was not provided"));
  }
}

Value Interpreter::call_loop(LoopObject& loop, const Args& args) {
  if (!loop.statement->is_recursive) {
    fail("The loop must have the 'recursive' marker to be called recursively.");
  }
  if (args.positional.size() != 1 || !args.keyword.empty()) {
    fail("loop() takes exactly one argument");
  }
  const CallGuard guard(&call_depth_, heap_.limits().call_depth_max);
  const DepthGuard depth(this);
  const ScopeGuard scope(this, loop.scope);
  begin_capture();
  run_loop(*loop.statement, args.positional[0], loop.depth0 + 1);
  return text(end_capture());
}

namespace {

Value loop_property(Interpreter& in,
                    LoopObject& loop,
                    const std::string& name,
                    bool* found) {
  Value item;
  if (name == "index") return Value::integer(loop.index0 + 1);
  if (name == "index0") return Value::integer(loop.index0);
  if (name == "first") return Value::boolean(loop.index0 == 0);
  if (name == "last") return Value::boolean(!loop.peek(&item));
  if (name == "length") return Value::integer(loop.length());
  if (name == "revindex") return Value::integer(loop.length() - loop.index0);
  if (name == "revindex0") {
    return Value::integer(loop.length() - loop.index0 - 1);
  }
  if (name == "depth") return Value::integer(loop.depth0 + 1);
  if (name == "depth0") return Value::integer(loop.depth0);
  if (name == "previtem") {
    if (loop.index0 > 0) return loop.before;
    return make_undefined(in.heap(), "there is no previous item");
  }
  if (name == "nextitem") {
    if (loop.peek(&item)) return item;
    return make_undefined(in.heap(), "there is no next item");
  }
  *found = false;
  return Value();
}

Value macro_property(Interpreter& in,
                     const MacroObject& macro,
                     const std::string& name,
                     bool* found) {
  const MacroCode& code = *macro.code;
  if (name == "name") return in.text(code.name);
  if (name == "caller") return Value::boolean(code.takes_caller);
  if (name == "catch_kwargs") return Value::boolean(code.takes_kwargs);
  if (name == "catch_varargs") return Value::boolean(code.takes_varargs);
  if (name == "arguments") {
    Values names;
    for (const std::string& parameter : code.parameters) {
      names.push_back(in.text(parameter));
    }
    return make_tuple(in.heap(), std::move(names));
  }
  *found = false;
  return Value();
}

}  // namespace

Value get_property(Interpreter& in,
                   const Value& object,
                   const std::string& name,
                   bool* found) {
  *found = true;
  switch (object.kind()) {
    case Kind::kLoop:
      return loop_property(in, object.as<LoopObject>(), name, found);
    case Kind::kMacro:
      return macro_property(in, object.as<MacroObject>(), name, found);
    case Kind::kNamespace:
      if (const Value* value = object.as<NamespaceObject>().find(name)) {
        return *value;
      }
      break;
    case Kind::kCycler: {
      const auto& cycler = object.as<CyclerObject>();
      if (name == "current") return cycler.items[cycler.position];
      break;
    }
    case Kind::kTuple: {
      const auto& tuple = object.as<ListObject>();
      if (tuple.is_group && name == "grouper") return tuple.items[0];
      if (tuple.is_group && name == "list") return tuple.items[1];
      break;
    }
    case Kind::kRange: {
      const auto& range = object.as<RangeObject>();
      if (name == "start") return Value::integer(range.start);
      if (name == "stop") return Value::integer(range.stop);
      if (name == "step") return Value::integer(range.step);
      break;
    }
    case Kind::kInt:
    case Kind::kBool:
    case Kind::kFloat:
      if (name == "real" || name == "numerator") {
        if (object.is(Kind::kFloat) && name != "real") break;
        return plus(in.heap(), object);
      }
      if (name == "imag") {
        return object.is(Kind::kFloat) ? Value::real(0) : Value::integer(0);
      }
      break;
    default:
      break;
  }
  *found = false;
  return Value();
}

}  // namespace mlx_flash::jinja
