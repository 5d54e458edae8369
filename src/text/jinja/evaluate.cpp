// SPDX-License-Identifier: MIT
// Expressions.
#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/interpreter_guards.h"

namespace mlx_flash::jinja {
namespace {

bool is_dunder(std::string_view name) {
  return name.size() > 4 && name.substr(0, 2) == "__" &&
         name.substr(name.size() - 2) == "__";
}

// "None", "dict object", ... as jinja2's messages say.
std::string object_name(const Value& value) {
  if (value.is_none()) return "None";
  return std::string(type_name(value)) + " object";
}

}  // namespace

void fail_undefined(const Value& value) {
  fail(value.object() ? value.as<UndefinedObject>().message
                      : "the value is undefined");
}

Value Interpreter::evaluate(const Expr& expr) {
  const DepthGuard guard(this);
  heap_.step();
  position_ = expr.position;
  switch (expr.kind) {
    case ExprKind::kString:
    case ExprKind::kInt:
    case ExprKind::kBigInt:
    case ExprKind::kFloat:
    case ExprKind::kBool:
    case ExprKind::kNone:
      return constant(expr);
    case ExprKind::kName:
      return name(expr);
    case ExprKind::kList:
    case ExprKind::kTuple:
      return list(expr);
    case ExprKind::kDict:
      return dict(expr);
    case ExprKind::kGetattr: {
      const Value object = evaluate(*expr.children[0]);
      position_ = expr.position;
      return get_attribute(object, expr.text);
    }
    case ExprKind::kGetitem: {
      const Value object = evaluate(*expr.children[0]);
      const Value key = evaluate(*expr.children[1]);
      position_ = expr.position;
      return get_item(object, key);
    }
    case ExprKind::kSlice:
      return slice_expression(expr);
    case ExprKind::kCall:
      return call_expression(expr, nullptr);
    case ExprKind::kFilter:
      return filter(expr, nullptr);
    case ExprKind::kTest:
      return test(expr);
    case ExprKind::kUnary:
      return unary(expr);
    case ExprKind::kBinary: {
      const Value left = evaluate(*expr.children[0]);
      const Value right = evaluate(*expr.children[1]);
      position_ = expr.position;
      return binary(heap_, static_cast<BinaryOp>(expr.op), left, right);
    }
    case ExprKind::kConcat:
      return concat(expr);
    case ExprKind::kCompare:
      return compare(expr);
    case ExprKind::kAnd: {
      Value left = evaluate(*expr.children[0]);
      return is_true(left) ? evaluate(*expr.children[1]) : left;
    }
    case ExprKind::kOr: {
      Value left = evaluate(*expr.children[0]);
      return is_true(left) ? left : evaluate(*expr.children[1]);
    }
    case ExprKind::kCondition:
      return condition(expr);
    case ExprKind::kNamespaceAttribute:
      break;
  }
  fail("this expression has no value");
}

Value Interpreter::slice_expression(const Expr& expr) {
  const Value object = evaluate(*expr.children[0]);
  Value bounds[3] = {Value::none(), Value::none(), Value::none()};
  for (size_t i = 0; i < 3; ++i) {
    if (expr.children[i + 1]) bounds[i] = evaluate(*expr.children[i + 1]);
  }
  position_ = expr.position;
  return slice(heap_, object, bounds[0], bounds[1], bounds[2]);
}

Value Interpreter::constant(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kInt:
      return Value::integer(expr.integer);
    case ExprKind::kBigInt:
      return make_big_int(heap_, expr.text);
    case ExprKind::kFloat:
      return Value::real(expr.real);
    case ExprKind::kBool:
      return Value::boolean(expr.integer != 0);
    case ExprKind::kNone:
      return Value::none();
    default:
      break;
  }
  Value& place = constants_[expr.id];
  if (!place.is_string()) place = make_string(heap_, expr.text);
  return place;
}

Value Interpreter::name(const Expr& expr) {
  for (const Scope* scope = scope_.get(); scope; scope = scope->parent.get()) {
    if (const Value* value = scope->find(expr.text)) return *value;
  }
  return make_undefined(heap_, "'" + expr.text + "' is undefined");
}

Value Interpreter::list(const Expr& expr) {
  Values items;
  items.reserve(expr.children.size());
  for (const ExprPtr& child : expr.children) items.push_back(evaluate(*child));
  return expr.kind == ExprKind::kList ? make_list(heap_, std::move(items))
                                      : make_tuple(heap_, std::move(items));
}

Value Interpreter::dict(const Expr& expr) {
  Value out(Kind::kDict, new DictObject(&heap_));
  for (size_t i = 0; i + 1 < expr.children.size(); i += 2) {
    const Value key = evaluate(*expr.children[i]);
    Value value = evaluate(*expr.children[i + 1]);
    position_ = expr.position;
    out.as<DictObject>().set(key, std::move(value));
  }
  return out;
}

Value Interpreter::concat(const Expr& expr) {
  Sink out(heap_);
  for (const ExprPtr& child : expr.children) {
    append_str(out, evaluate(*child));
  }
  return text(out.take());
}

bool Interpreter::compare_two(CompareOp op,
                              const Value& left,
                              const Value& right) {
  switch (op) {
    case CompareOp::kEqual:
      return equals(heap_, left, right);
    case CompareOp::kNotEqual:
      return !equals(heap_, left, right);
    case CompareOp::kLess:
      return ordered(heap_, left, right, "<");
    case CompareOp::kLessEqual:
      return ordered(heap_, left, right, "<=");
    case CompareOp::kGreater:
      return ordered(heap_, left, right, ">");
    case CompareOp::kGreaterEqual:
      return ordered(heap_, left, right, ">=");
    case CompareOp::kIn:
      return contains(heap_, right, left);
    case CompareOp::kNotIn:
      return !contains(heap_, right, left);
  }
  return false;
}

Value Interpreter::compare(const Expr& expr) {
  Value left = evaluate(*expr.children[0]);
  for (size_t i = 1; i < expr.children.size(); ++i) {
    Value right = evaluate(*expr.children[i]);
    position_ = expr.position;
    const auto op = static_cast<CompareOp>(expr.text[i - 1]);
    if (!compare_two(op, left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::condition(const Expr& expr) {
  if (is_true(evaluate(*expr.children[0]))) return evaluate(*expr.children[1]);
  if (expr.children[2]) return evaluate(*expr.children[2]);
  return make_undefined(
      heap_,
      "the inline if-expression on line " + std::to_string(expr.position.line) +
          " evaluated to false and no else section was defined.");
}

Value Interpreter::unary(const Expr& expr) {
  const Value value = evaluate(*expr.children[0]);
  position_ = expr.position;
  if (expr.op == '!') return Value::boolean(!is_true(value));
  return expr.op == '-' ? negate(heap_, value) : plus(heap_, value);
}

Args Interpreter::arguments(const CallArguments& call) {
  Args out;
  out.positional.reserve(call.positional.size());
  for (const ExprPtr& arg : call.positional) {
    out.positional.push_back(evaluate(*arg));
  }
  for (const auto& [key, arg] : call.keyword) {
    out.keyword.emplace_back(key, evaluate(*arg));
  }
  if (call.star) {
    for (Value& item : to_values(heap_, evaluate(*call.star))) {
      out.positional.push_back(std::move(item));
    }
  }
  if (call.double_star) {
    const Value extra = evaluate(*call.double_star);
    if (!extra.is(Kind::kDict)) fail("argument after ** must be a mapping");
    for (const auto& entry : extra.as<DictObject>().entries()) {
      if (!entry.key.is_string()) fail("keywords must be strings");
      out.keyword.emplace_back(entry.key.text(), entry.value);
    }
  }
  for (size_t i = 1; i < out.keyword.size(); ++i) {
    heap_.step(i);
    for (size_t j = 0; j < i; ++j) {
      if (out.keyword[i].first == out.keyword[j].first) {
        fail("got multiple values for keyword argument '" +
             out.keyword[i].first + "'");
      }
    }
  }
  return out;
}

Value Interpreter::call_expression(const Expr& expr, const Value* caller) {
  const Expr& callee = *expr.children[0];
  if (callee.kind == ExprKind::kGetattr) {
    // A method called at once needs no function object.
    const Value object = evaluate(*callee.children[0]);
    if (const Builtin* method = find_method(object, callee.text)) {
      Args args = arguments(*expr.call);
      if (caller) args.keyword.emplace_back("caller", *caller);
      position_ = expr.position;
      return call_builtin(*this, *method, object, args);
    }
    position_ = callee.position;
    const Value function = get_attribute(object, callee.text);
    Args args = arguments(*expr.call);
    if (caller) args.keyword.emplace_back("caller", *caller);
    position_ = expr.position;
    return call(function, args);
  }
  const Value function = evaluate(callee);
  Args args = arguments(*expr.call);
  if (caller) args.keyword.emplace_back("caller", *caller);
  position_ = expr.position;
  return call(function, args);
}

Value Interpreter::filter(const Expr& expr, const Value* body) {
  const DepthGuard guard(this);
  const Expr* input = expr.children[0].get();
  Value value = input == nullptr                   ? *body
                : input->kind == ExprKind::kFilter ? filter(*input, body)
                                                   : evaluate(*input);
  const Args args = arguments(*expr.call);
  position_ = expr.position;
  return run_filter(*this, expr.text, value, args);
}

Value Interpreter::test(const Expr& expr) {
  const Value value = evaluate(*expr.children[0]);
  const Args args = arguments(*expr.call);
  position_ = expr.position;
  return Value::boolean(run_test(*this, expr.text, value, args));
}

// What Python's getattr finds, with the sandbox around it.
Value Interpreter::attribute(const Value& object,
                             const std::string& name,
                             bool* found) {
  *found = true;
  if (const Builtin* method = find_method(object, name)) {
    return make_function(
        heap_,
        name,
        [object, method](Interpreter& in, const Args& args) {
          return call_builtin(in, *method, object, args);
        },
        object.depth());
  }
  if (is_mutator(object, name) || is_dunder(name)) {
    return make_undefined(heap_,
                          "access to attribute '" + name + "' of '" +
                              type_name(object) + "' object is unsafe.");
  }
  return get_property(*this, object, name, found);
}

Value Interpreter::get_attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) fail_undefined(object);
  if (object.is(Kind::kDict) && !find_method(object, name) &&
      !is_mutator(object, name) && !is_dunder(name)) {
    if (const Value* item = object.as<DictObject>().find(name)) return *item;
  } else {
    bool found = false;
    Value out = attribute(object, name, &found);
    if (found) return out;
  }
  return make_undefined(heap_,
                        std::string("'") + object_name(object) +
                            "' has no attribute '" + name + "'");
}

Value Interpreter::get_item(const Value& object, const Value& key) {
  switch (object.kind()) {
    case Kind::kUndefined:
      fail_undefined(object);
    case Kind::kDict:
      if (key.is_string()) {
        const Value* item = object.as<DictObject>().find(key.text());
        if (item) return *item;
      } else if (!key.is(Kind::kList) && !key.is(Kind::kDict)) {
        if (const Value* item = object.as<DictObject>().find(key)) return *item;
      }
      break;
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
      if (key.is(Kind::kInt) || key.is(Kind::kBool)) {
        Value out;
        const int64_t index =
            key.is(Kind::kInt) ? key.as_int() : (key.as_bool() ? 1 : 0);
        if (element(heap_, object, index, &out)) return out;
      }
      break;
    default:
      break;
  }
  if (key.is_string()) {
    bool found = false;
    Value out = attribute(object, key.text(), &found);
    if (found) return out;
    return make_undefined(heap_,
                          std::string("'") + object_name(object) +
                              "' has no attribute " + repr_text(key.text()));
  }
  Sink shown(heap_);
  append_repr(shown, key);
  return make_undefined(
      heap_, object_name(object) + " has no element " + shown.take());
}

}  // namespace mlx_flash::jinja
