// SPDX-License-Identifier: MIT
#pragma once

// The parser's class, split over parse_expression.cpp and parse_statement.cpp.
// The grammar is Jinja2's; every method fails with a position.

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace mlx_flash::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  Template run();

 private:
  using Names = std::initializer_list<std::string_view>;

  // Tokens
  const Token& current() const { return tokens_[at_]; }
  const Token& look() const {
    return tokens_[at_ + 1 < tokens_.size() ? at_ + 1 : at_];
  }
  const Token& next() {
    const Token& token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool at_operator(std::string_view text) const;
  bool at_name(std::string_view text) const;
  bool at_any_name(Names names) const;
  bool skip_operator(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_operator(std::string_view text);
  const Token& expect_name();
  void expect(TokenKind kind);
  [[noreturn]] void refuse(std::string why, Position position) const;
  [[noreturn]] void refuse_current(const char* wanted) const;

  // Expressions
  ExprPtr make(ExprKind kind, Position position) const;
  // Takes its children in and checks how deep they nest.
  ExprPtr wrap(ExprKind kind, Position position, ExprPtr child);
  void adopt(Expr* parent, ExprPtr child);
  void adopt_call(Expr* parent);  // the arguments in parentheses, if any
  void deepen(Expr* parent, const ExprPtr& child) const;
  ExprPtr expression(bool with_condition = true);
  ExprPtr condition();
  ExprPtr logical_or();
  ExprPtr logical_and();
  ExprPtr logical_not();
  ExprPtr comparison();
  bool comparison_operator(char* op);
  ExprPtr sum();
  ExprPtr concat();
  ExprPtr product();
  ExprPtr power();
  ExprPtr unary(bool with_filter = true);
  ExprPtr primary(bool with_namespace = false);
  ExprPtr name_or_constant(bool with_namespace);
  ExprPtr literal();
  ExprPtr list();
  ExprPtr dict();
  ExprPtr postfix(ExprPtr expr);
  ExprPtr filters_and_tests(ExprPtr expr);
  ExprPtr subscript(ExprPtr expr);
  ExprPtr subscripted(ExprPtr expr);  // the part in brackets
  ExprPtr call(ExprPtr callee);
  std::unique_ptr<CallArguments> call_arguments();
  ExprPtr filter(ExprPtr expr, bool start_inline);
  ExprPtr test(ExprPtr expr);
  ExprPtr tuple(bool simplified,
                bool with_condition,
                Names ends,
                bool parenthesized,
                bool with_namespace);
  ExprPtr tuple() { return tuple(false, true, {}, false, false); }
  ExprPtr binary(uint32_t op, ExprPtr left, ExprPtr right);
  bool at_tuple_end(Names ends) const;
  std::string dotted_name();

  // Statements
  ExprPtr target(Names ends, bool with_namespace);
  void check_target(const Expr& expr) const;
  std::string name_target();
  Body body(Names ends);
  Body body_until(Names ends);  // from the end of the opening tag
  void statement(Body* out);
  StatementPtr start(StatementKind kind);
  StatementPtr parse_set();
  StatementPtr parse_for();
  StatementPtr parse_if();
  StatementPtr parse_with();
  StatementPtr parse_macro();
  StatementPtr parse_call_block();
  StatementPtr parse_filter_block();
  StatementPtr parse_generation();
  StatementPtr parse_block();
  StatementPtr parse_loop_control();
  StatementPtr parse_print();
  StatementPtr parse_unsupported();
  void signature(MacroCode* macro);
  void macro_body(MacroCode* macro, std::string_view end);
  [[noreturn]] void refuse_tag(const Token& token) const;

  // How often a special name has been read, to see which a body uses.
  struct SpecialNames {
    uint32_t loop = 0;
    uint32_t caller = 0;
    uint32_t kwargs = 0;
    uint32_t varargs = 0;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  uint32_t constant_count_ = 0;
  uint32_t depth_ = 0;
  uint32_t loop_depth_ = 0;
  SpecialNames seen_;
  // Unknown filters and tests; those under a condition are forgiven until
  // they are reached.
  std::vector<std::pair<std::string, Position>> unknown_;
  std::vector<std::string> open_tags_;
};

}  // namespace mlx_flash::jinja
