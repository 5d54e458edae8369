// SPDX-License-Identifier: MIT
// What can stand behind "is". Each follows jinja2/tests.py.
#include <iterator>

#include "text/jinja/builtins.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

bool remainder_is(Interpreter& in,
                  const Value& value,
                  int64_t by,
                  int64_t rest) {
  const Value modulo =
      binary(in.heap(), BinaryOp::kMod, value, Value::integer(by));
  return equals(in.heap(), modulo, Value::integer(rest));
}

Value odd(Interpreter& in, const Value& self, const Bound&) {
  return Value::boolean(remainder_is(in, self, 2, 1));
}
Value even(Interpreter& in, const Value& self, const Bound&) {
  return Value::boolean(remainder_is(in, self, 2, 0));
}
Value divisibleby(Interpreter& in, const Value& self, const Bound& args) {
  const Value modulo = binary(in.heap(), BinaryOp::kMod, self, args.at(0));
  return Value::boolean(equals(in.heap(), modulo, Value::integer(0)));
}
Value defined(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(!self.is_undefined());
}
Value undefined(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is_undefined());
}
Value filter(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is_string() && is_filter(self.text()));
}
Value test(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is_string() && is_test(self.text()));
}
Value none(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is_none());
}
Value boolean(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is(Kind::kBool));
}
Value is_false(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is(Kind::kBool) && !self.as_bool());
}
Value is_truth(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is(Kind::kBool) && self.as_bool());
}
Value integer(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is(Kind::kInt) || self.is(Kind::kBigInt));
}
Value real(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is(Kind::kFloat));
}
Value number(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(is_number(self) || self.is(Kind::kBigInt));
}
Value string(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is_string());
}
Value mapping(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(self.is(Kind::kDict));
}
Value iterable(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(Iteration::possible(self) || self.is(Kind::kLoop));
}
Value sequence(Interpreter&, const Value& self, const Bound&) {
  switch (self.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
      return Value::boolean(true);
    default:
      return Value::boolean(false);
  }
}
Value callable(Interpreter&, const Value& self, const Bound&) {
  switch (self.kind()) {
    case Kind::kUndefined:  // it has __call__, which then raises
    case Kind::kFunction:
    case Kind::kMacro:
    case Kind::kLoop:
    case Kind::kJoiner:
      return Value::boolean(true);
    default:
      return Value::boolean(false);
  }
}
Value sameas(Interpreter&, const Value& self, const Bound& args) {
  return Value::boolean(is_same(self, args.at(0)));
}
Value escaped(Interpreter&, const Value& self, const Bound&) {
  return Value::boolean(is_markup(self));
}
Value in_test(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(contains(in.heap(), args.at(0), self));
}
Value is_lower_test(Interpreter& in, const Value& self, const Bound&) {
  const Value text = in.text(str_of(in, self));
  return call_builtin(in, *find_method(text, "islower"), text, {});
}
Value is_upper_test(Interpreter& in, const Value& self, const Bound&) {
  const Value text = in.text(str_of(in, self));
  return call_builtin(in, *find_method(text, "isupper"), text, {});
}
Value eq(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(equals(in.heap(), self, args.at(0)));
}
Value ne(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(!equals(in.heap(), self, args.at(0)));
}
Value gt(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(ordered(in.heap(), self, args.at(0), ">"));
}
Value ge(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(ordered(in.heap(), self, args.at(0), ">="));
}
Value lt(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(ordered(in.heap(), self, args.at(0), "<"));
}
Value le(Interpreter& in, const Value& self, const Bound& args) {
  return Value::boolean(ordered(in.heap(), self, args.at(0), "<="));
}

constexpr Builtin kTests[] = {
    {"odd", "", 0, odd},
    {"even", "", 0, even},
    {"divisibleby", "num", 1, divisibleby},
    {"defined", "", 0, defined},
    {"undefined", "", 0, undefined},
    {"filter", "", 0, filter},
    {"test", "", 0, test},
    {"none", "", 0, none},
    {"boolean", "", 0, boolean},
    {"false", "", 0, is_false},
    {"true", "", 0, is_truth},
    {"integer", "", 0, integer},
    {"float", "", 0, real},
    {"number", "", 0, number},
    {"string", "", 0, string},
    {"mapping", "", 0, mapping},
    {"iterable", "", 0, iterable},
    {"sequence", "", 0, sequence},
    {"callable", "", 0, callable},
    {"sameas", "other", 1, sameas},
    {"escaped", "", 0, escaped},
    {"in", "seq", 1, in_test},
    {"lower", "", 0, is_lower_test},
    {"upper", "", 0, is_upper_test},
    {"==", "/other", 1, eq},
    {"eq", "/other", 1, eq},
    {"equalto", "/other", 1, eq},
    {"!=", "/other", 1, ne},
    {"ne", "/other", 1, ne},
    {">", "/other", 1, gt},
    {"gt", "/other", 1, gt},
    {"greaterthan", "/other", 1, gt},
    {">=", "/other", 1, ge},
    {"ge", "/other", 1, ge},
    {"<", "/other", 1, lt},
    {"lt", "/other", 1, lt},
    {"lessthan", "/other", 1, lt},
    {"<=", "/other", 1, le},
    {"le", "/other", 1, le},
};

}  // namespace

const Builtin* find_test(std::string_view name) {
  return find_builtin({kTests, std::size(kTests)}, name);
}

}  // namespace mlx_flash::jinja
