// SPDX-License-Identifier: MIT
#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"
#include "text/jinja/parser_impl.h"

namespace mlx_flash::jinja {
namespace {

// Deeper trees than any template's: they would only exhaust the C++ stack.
constexpr uint32_t kTreeDepthMax = 400;
constexpr uint32_t kNestingMax = 100;

class Nesting {
 public:
  Nesting(uint32_t* depth, Position position) : depth_(depth) {
    if (++*depth_ > kNestingMax) {
      --*depth_;
      throw TemplateError("expressions are nested too deeply", position);
    }
  }
  ~Nesting() { --*depth_; }

 private:
  uint32_t* depth_;
};

uint32_t op_of(BinaryOp op) {
  return static_cast<uint32_t>(op);
}

}  // namespace

ExprPtr Parser::make(ExprKind kind, Position position) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->position = position;
  return expr;
}

void Parser::adopt(Expr* parent, ExprPtr child) {
  deepen(parent, child);
  parent->children.push_back(std::move(child));
}

void Parser::deepen(Expr* parent, const ExprPtr& child) const {
  if (!child) return;
  parent->depth = std::max(parent->depth, child->depth + 1);
  if (parent->depth > kTreeDepthMax) {
    refuse("the expression is nested too deeply", child->position);
  }
}

void Parser::adopt_call(Expr* parent) {
  parent->call =
      at_operator("(") ? call_arguments() : std::make_unique<CallArguments>();
  for (const ExprPtr& arg : parent->call->positional) deepen(parent, arg);
  for (const auto& [name, arg] : parent->call->keyword) deepen(parent, arg);
  deepen(parent, parent->call->star);
  deepen(parent, parent->call->double_star);
}

ExprPtr Parser::wrap(ExprKind kind, Position position, ExprPtr child) {
  ExprPtr expr = make(kind, position);
  adopt(expr.get(), std::move(child));
  return expr;
}

ExprPtr Parser::binary(uint32_t op, ExprPtr left, ExprPtr right) {
  const Position position = left->position;
  ExprPtr expr = wrap(ExprKind::kBinary, position, std::move(left));
  adopt(expr.get(), std::move(right));
  expr->op = op;
  return expr;
}

ExprPtr Parser::expression(bool with_condition) {
  const Nesting nesting(&depth_, current().position);
  return with_condition ? condition() : logical_or();
}

ExprPtr Parser::condition() {
  const size_t mark = unknown_.size();
  ExprPtr then = logical_or();
  while (skip_name("if")) {
    ExprPtr question = logical_or();
    ExprPtr otherwise;
    if (skip_name("else")) {
      const Nesting nesting(&depth_, current().position);
      otherwise = condition();
    }
    const Position position = then->position;
    ExprPtr expr = wrap(ExprKind::kCondition, position, std::move(question));
    adopt(expr.get(), std::move(then));
    adopt(expr.get(), std::move(otherwise));
    then = std::move(expr);
    unknown_.resize(mark);
  }
  return then;
}

ExprPtr Parser::logical_or() {
  ExprPtr left = logical_and();
  while (skip_name("or")) {
    ExprPtr right = logical_and();
    left = wrap(ExprKind::kOr, right->position, std::move(left));
    adopt(left.get(), std::move(right));
  }
  return left;
}

ExprPtr Parser::logical_and() {
  ExprPtr left = logical_not();
  while (skip_name("and")) {
    ExprPtr right = logical_not();
    left = wrap(ExprKind::kAnd, right->position, std::move(left));
    adopt(left.get(), std::move(right));
  }
  return left;
}

ExprPtr Parser::logical_not() {
  if (!at_name("not")) return comparison();
  const Nesting nesting(&depth_, current().position);
  const Position position = next().position;
  ExprPtr expr = wrap(ExprKind::kUnary, position, logical_not());
  expr->op = '!';
  return expr;
}

bool Parser::comparison_operator(char* op) {
  static constexpr std::pair<const char*, CompareOp> kOperators[] = {
      {"==", CompareOp::kEqual},
      {"!=", CompareOp::kNotEqual},
      {"<", CompareOp::kLess},
      {"<=", CompareOp::kLessEqual},
      {">", CompareOp::kGreater},
      {">=", CompareOp::kGreaterEqual},
  };
  for (const auto& [text, value] : kOperators) {
    if (skip_operator(text)) {
      *op = static_cast<char>(value);
      return true;
    }
  }
  if (skip_name("in")) {
    *op = static_cast<char>(CompareOp::kIn);
    return true;
  }
  if (at_name("not") && look().kind == TokenKind::kName &&
      look().text == "in") {
    next();
    next();
    *op = static_cast<char>(CompareOp::kNotIn);
    return true;
  }
  return false;
}

ExprPtr Parser::comparison() {
  ExprPtr first = sum();
  char op = 0;
  if (!comparison_operator(&op)) return first;
  const Position position = first->position;
  ExprPtr expr = wrap(ExprKind::kCompare, position, std::move(first));
  do {
    expr->text += op;
    adopt(expr.get(), sum());
  } while (comparison_operator(&op));
  return expr;
}

ExprPtr Parser::sum() {
  ExprPtr left = concat();
  for (;;) {
    if (skip_operator("+")) {
      left = binary(op_of(BinaryOp::kAdd), std::move(left), concat());
    } else if (skip_operator("-")) {
      left = binary(op_of(BinaryOp::kSub), std::move(left), concat());
    } else {
      return left;
    }
  }
}

ExprPtr Parser::concat() {
  ExprPtr first = product();
  if (!at_operator("~")) return first;
  const Position position = first->position;
  ExprPtr expr = wrap(ExprKind::kConcat, position, std::move(first));
  while (skip_operator("~")) adopt(expr.get(), product());
  return expr;
}

ExprPtr Parser::product() {
  static constexpr std::pair<const char*, BinaryOp> kOperators[] = {
      {"*", BinaryOp::kMul},
      {"/", BinaryOp::kDiv},
      {"//", BinaryOp::kFloorDiv},
      {"%", BinaryOp::kMod},
  };
  ExprPtr left = power();
  for (bool found = true; found;) {
    found = false;
    for (const auto& [text, op] : kOperators) {
      if (!skip_operator(text)) continue;
      left = binary(op_of(op), std::move(left), power());
      found = true;
      break;
    }
  }
  return left;
}

ExprPtr Parser::power() {
  ExprPtr left = unary();
  while (skip_operator("**")) {
    left = binary(op_of(BinaryOp::kPow), std::move(left), unary());
  }
  return left;
}

ExprPtr Parser::unary(bool with_filter) {
  ExprPtr expr;
  if (at_operator("-") || at_operator("+")) {
    const Nesting nesting(&depth_, current().position);
    const Token& sign = next();
    expr = wrap(ExprKind::kUnary, sign.position, unary(false));
    expr->op = static_cast<uint8_t>(sign.text[0]);
  } else {
    expr = primary();
  }
  expr = postfix(std::move(expr));
  return with_filter ? filters_and_tests(std::move(expr)) : std::move(expr);
}

ExprPtr Parser::primary(bool with_namespace) {
  const Token& token = current();
  switch (token.kind) {
    case TokenKind::kName:
      return name_or_constant(with_namespace);
    case TokenKind::kString:
    case TokenKind::kInteger:
    case TokenKind::kBigInteger:
    case TokenKind::kFloat:
      return literal();
    case TokenKind::kOperator:
      break;
    default:
      refuse_current("an expression");
  }
  const Nesting nesting(&depth_, token.position);
  if (skip_operator("(")) {
    ExprPtr expr = tuple(false, true, {}, true, false);
    expect_operator(")");
    return expr;
  }
  if (at_operator("[")) return list();
  if (at_operator("{")) return dict();
  refuse_current("an expression");
}

ExprPtr Parser::name_or_constant(bool with_namespace) {
  const Token& token = next();
  const std::string& name = token.text;
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    ExprPtr expr = make(ExprKind::kBool, token.position);
    expr->integer = name[0] == 't' || name[0] == 'T' ? 1 : 0;
    return expr;
  }
  if (name == "none" || name == "None") {
    return make(ExprKind::kNone, token.position);
  }
  if (with_namespace && skip_operator(".")) {
    ExprPtr expr = make(ExprKind::kNamespaceAttribute, token.position);
    expr->text = name;
    expr->name = expect_name().text;
    return expr;
  }
  ExprPtr expr = make(ExprKind::kName, token.position);
  expr->text = name;
  if (name == "loop") ++seen_.loop;
  if (name == "caller") ++seen_.caller;
  if (name == "kwargs") ++seen_.kwargs;
  if (name == "varargs") ++seen_.varargs;
  return expr;
}

ExprPtr Parser::literal() {
  const Token& token = next();
  if (token.kind == TokenKind::kString) {
    ExprPtr expr = make(ExprKind::kString, token.position);
    expr->text = token.text;
    while (current().kind == TokenKind::kString) expr->text += next().text;
    expr->id = constant_count_++;
    return expr;
  }
  if (token.kind == TokenKind::kFloat) {
    ExprPtr expr = make(ExprKind::kFloat, token.position);
    expr->real = token.real;
    return expr;
  }
  const bool is_big = token.kind == TokenKind::kBigInteger;
  ExprPtr expr =
      make(is_big ? ExprKind::kBigInt : ExprKind::kInt, token.position);
  expr->integer = token.integer;
  expr->text = token.text;
  return expr;
}

ExprPtr Parser::list() {
  ExprPtr expr = make(ExprKind::kList, current().position);
  expect_operator("[");
  while (!at_operator("]")) {
    if (!expr->children.empty()) expect_operator(",");
    if (at_operator("]")) break;
    adopt(expr.get(), expression());
  }
  expect_operator("]");
  return expr;
}

ExprPtr Parser::dict() {
  ExprPtr expr = make(ExprKind::kDict, current().position);
  expect_operator("{");
  while (!at_operator("}")) {
    if (!expr->children.empty()) expect_operator(",");
    if (at_operator("}")) break;
    adopt(expr.get(), expression());
    expect_operator(":");
    adopt(expr.get(), expression());
  }
  expect_operator("}");
  return expr;
}

ExprPtr Parser::postfix(ExprPtr expr) {
  for (;;) {
    if (at_operator(".") || at_operator("[")) {
      expr = subscript(std::move(expr));
    } else if (at_operator("(")) {
      expr = call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr Parser::filters_and_tests(ExprPtr expr) {
  for (;;) {
    if (at_operator("|")) {
      expr = filter(std::move(expr), false);
    } else if (at_name("is")) {
      expr = test(std::move(expr));
    } else if (at_operator("(")) {
      expr = call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr Parser::subscript(ExprPtr expr) {
  const Position position = current().position;
  if (!skip_operator(".")) {
    expect_operator("[");
    return subscripted(std::move(expr));
  }
  const Token& token = next();
  if (token.kind == TokenKind::kName) {
    ExprPtr out = wrap(ExprKind::kGetattr, position, std::move(expr));
    out->text = token.text;
    return out;
  }
  if (token.kind != TokenKind::kInteger) {
    refuse("expected name or number", token.position);
  }
  ExprPtr out = wrap(ExprKind::kGetitem, position, std::move(expr));
  ExprPtr index = make(ExprKind::kInt, token.position);
  index->integer = token.integer;
  adopt(out.get(), std::move(index));
  return out;
}

ExprPtr Parser::subscripted(ExprPtr expr) {
  const Position position = expr->position;
  ExprPtr bounds[3];
  size_t count = 0;
  bool is_slice = false;
  if (!at_operator(":")) {
    bounds[0] = expression();
    if (at_operator(",")) {  // value[a, b]: a tuple as the key
      ExprPtr key = wrap(ExprKind::kTuple, position, std::move(bounds[0]));
      while (skip_operator(",")) {
        if (at_operator("]")) break;
        adopt(key.get(), expression());
      }
      expect_operator("]");
      ExprPtr out = wrap(ExprKind::kGetitem, position, std::move(expr));
      adopt(out.get(), std::move(key));
      return out;
    }
  }
  while (skip_operator(":")) {
    is_slice = true;
    if (++count > 2) refuse_current("']'");
    if (!at_operator(":") && !at_operator("]")) bounds[count] = expression();
  }
  expect_operator("]");
  if (!is_slice) {
    ExprPtr out = wrap(ExprKind::kGetitem, position, std::move(expr));
    adopt(out.get(), std::move(bounds[0]));
    return out;
  }
  ExprPtr out = wrap(ExprKind::kSlice, position, std::move(expr));
  for (ExprPtr& bound : bounds) adopt(out.get(), std::move(bound));
  return out;
}

ExprPtr Parser::call(ExprPtr callee) {
  const Position position = callee->position;
  ExprPtr expr = wrap(ExprKind::kCall, position, std::move(callee));
  adopt_call(expr.get());
  return expr;
}

std::unique_ptr<CallArguments> Parser::call_arguments() {
  const Position position = current().position;
  auto args = std::make_unique<CallArguments>();
  expect_operator("(");
  const auto ensure = [&](bool allowed) {
    if (!allowed) refuse("invalid syntax for function call", position);
  };
  bool require_comma = false;
  while (!at_operator(")")) {
    if (require_comma) {
      expect_operator(",");
      if (at_operator(")")) break;
    }
    if (skip_operator("*")) {
      ensure(!args->star && !args->double_star);
      args->star = expression();
    } else if (skip_operator("**")) {
      ensure(!args->double_star);
      args->double_star = expression();
    } else if (current().kind == TokenKind::kName &&
               look().kind == TokenKind::kOperator && look().text == "=") {
      ensure(!args->double_star);
      std::string name = next().text;
      next();
      args->keyword.emplace_back(std::move(name), expression());
    } else {
      ensure(!args->star && !args->double_star && args->keyword.empty());
      args->positional.push_back(expression());
    }
    require_comma = true;
  }
  expect_operator(")");
  return args;
}

std::string Parser::dotted_name() {
  std::string name = expect_name().text;
  while (skip_operator(".")) name += "." + expect_name().text;
  return name;
}

ExprPtr Parser::filter(ExprPtr expr, bool start_inline) {
  while (at_operator("|") || start_inline) {
    if (!start_inline) next();
    start_inline = false;
    const Position position = current().position;
    std::string name = dotted_name();
    if (!is_filter(name)) {
      unknown_.emplace_back("No filter named '" + name + "'.", position);
    }
    expr = wrap(ExprKind::kFilter, position, std::move(expr));
    expr->text = std::move(name);
    adopt_call(expr.get());
  }
  return expr;
}

ExprPtr Parser::test(ExprPtr expr) {
  const Position position = next().position;  // "is"
  const bool is_negated = skip_name("not");
  const Position name_position = current().position;
  std::string name = dotted_name();
  if (!is_test(name)) {
    unknown_.emplace_back("No test named '" + name + "'.", name_position);
  }
  ExprPtr out = wrap(ExprKind::kTest, position, std::move(expr));
  out->text = std::move(name);
  const Token& token = current();
  const bool has_arguments = at_operator("(");
  adopt_call(out.get());
  if (!has_arguments) {
    const bool starts_value =
        token.kind == TokenKind::kName || token.kind == TokenKind::kString ||
        token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat ||
        at_operator("[") || at_operator("{");
    if (starts_value && !at_any_name({"else", "or", "and"})) {
      if (at_name("is")) {
        refuse("You cannot chain multiple tests with is", token.position);
      }
      out->call->positional.push_back(postfix(primary()));
      deepen(out.get(), out->call->positional.back());
    }
  }
  if (!is_negated) return out;
  ExprPtr negated = wrap(ExprKind::kUnary, position, std::move(out));
  negated->op = '!';
  return negated;
}

bool Parser::at_tuple_end(Names ends) const {
  return current().kind == TokenKind::kVariableEnd ||
         current().kind == TokenKind::kBlockEnd || at_operator(")") ||
         at_any_name(ends);
}

ExprPtr Parser::tuple(bool simplified,
                      bool with_condition,
                      Names ends,
                      bool parenthesized,
                      bool with_namespace) {
  const Position position = current().position;
  ExprPtr out = make(ExprKind::kTuple, position);
  bool is_tuple = false;
  for (;;) {
    if (!out->children.empty()) expect_operator(",");
    if (at_tuple_end(ends)) break;
    adopt(out.get(),
          simplified ? primary(with_namespace) : expression(with_condition));
    if (!at_operator(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return out;
  if (!out->children.empty()) return std::move(out->children[0]);
  if (!parenthesized) refuse_current("an expression");
  return out;
}

}  // namespace mlx_flash::jinja
