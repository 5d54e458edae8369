// SPDX-License-Identifier: MIT
#include "text/jinja/parser.h"
#include "text/jinja/parser_impl.h"

namespace mlx_flash::jinja {
namespace {

// The tokens and the tree of a source take some hundred times its bytes.
constexpr size_t kSourceBytesMax = 128u << 10;
constexpr size_t kParametersOfMacroMax = 255;
constexpr uint32_t kBlocksMax = 100;

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kEnd:
      return "end of template";
    case TokenKind::kBlockEnd:
      return "end of statement block";
    case TokenKind::kVariableEnd:
      return "end of print statement";
    case TokenKind::kData:
      return "template data";
    case TokenKind::kString:
      return "string";
    default:
      return token.text.empty() ? "begin of a tag" : "'" + token.text + "'";
  }
}

}  // namespace

bool Parser::at_operator(std::string_view text) const {
  return current().kind == TokenKind::kOperator && current().text == text;
}

bool Parser::at_name(std::string_view text) const {
  return current().kind == TokenKind::kName && current().text == text;
}

bool Parser::at_any_name(Names names) const {
  for (const std::string_view name : names) {
    if (at_name(name)) return true;
  }
  return false;
}

bool Parser::skip_operator(std::string_view text) {
  if (!at_operator(text)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view text) {
  if (!at_name(text)) return false;
  next();
  return true;
}

void Parser::expect_operator(std::string_view text) {
  if (!skip_operator(text)) {
    refuse_current(("'" + std::string(text) + "'").c_str());
  }
}

const Token& Parser::expect_name() {
  if (current().kind != TokenKind::kName) refuse_current("a name");
  return next();
}

void Parser::expect(TokenKind kind) {
  if (current().kind != kind) {
    refuse_current(kind == TokenKind::kBlockEnd ? "end of statement block"
                                                : "end of print statement");
  }
  next();
}

void Parser::refuse(std::string why, Position position) const {
  throw TemplateError(std::move(why), position);
}

void Parser::refuse_current(const char* wanted) const {
  refuse(std::string("expected ") + wanted + ", got " + describe(current()),
         current().position);
}

Template Parser::run() {
  Template out;
  out.body = body({});
  if (!unknown_.empty()) refuse(unknown_[0].first, unknown_[0].second);
  out.constant_count = constant_count_;
  return out;
}

StatementPtr Parser::start(StatementKind kind) {
  auto statement = std::make_unique<Statement>();
  statement->kind = kind;
  statement->position = current().position;
  return statement;
}

// Up to one of the tags in `ends` (its name is then current), or to the end of
// the template when there are none.
Body Parser::body(Names ends) {
  Body out;
  if (++depth_ > kBlocksMax) {
    refuse("blocks are nested too deeply", current().position);
  }
  for (;;) {
    const Token& token = current();
    if (token.kind == TokenKind::kEnd) {
      if (ends.size() == 0) break;
      refuse(
          "Unexpected end of template: the innermost block that needs to "
          "be closed is '" +
              open_tags_.back() + "'",
          token.position);
    }
    if (token.kind == TokenKind::kData) {
      StatementPtr text = start(StatementKind::kText);
      text->text = next().text;
      out.push_back(std::move(text));
    } else if (token.kind == TokenKind::kVariableBegin) {
      StatementPtr output = start(StatementKind::kOutput);
      next();
      output->expressions.push_back(tuple());
      expect(TokenKind::kVariableEnd);
      out.push_back(std::move(output));
    } else {
      next();  // block begin
      if (at_any_name(ends)) break;
      statement(&out);
      expect(TokenKind::kBlockEnd);
    }
  }
  --depth_;
  return out;
}

Body Parser::body_until(Names ends) {
  skip_operator(":");
  expect(TokenKind::kBlockEnd);
  return body(ends);
}

void Parser::statement(Body* out) {
  using Method = StatementPtr (Parser::*)();
  static constexpr std::pair<const char*, Method> kTags[] = {
      {"set", &Parser::parse_set},
      {"for", &Parser::parse_for},
      {"if", &Parser::parse_if},
      {"with", &Parser::parse_with},
      {"macro", &Parser::parse_macro},
      {"call", &Parser::parse_call_block},
      {"filter", &Parser::parse_filter_block},
      {"generation", &Parser::parse_generation},
      {"block", &Parser::parse_block},
      {"break", &Parser::parse_loop_control},
      {"continue", &Parser::parse_loop_control},
      {"print", &Parser::parse_print},
      {"include", &Parser::parse_unsupported},
      {"import", &Parser::parse_unsupported},
      {"from", &Parser::parse_unsupported},
      {"extends", &Parser::parse_unsupported},
      {"autoescape", &Parser::parse_unsupported},
  };
  const Token& token = current();
  if (token.kind != TokenKind::kName) refuse_current("a tag name");
  for (const auto& [name, method] : kTags) {
    if (token.text != name) continue;
    open_tags_.push_back(token.text);
    StatementPtr parsed = (this->*method)();
    open_tags_.pop_back();
    out->push_back(std::move(parsed));
    return;
  }
  refuse_tag(token);
}

void Parser::refuse_tag(const Token& token) const {
  std::string why = "Encountered unknown tag '" + token.text + "'.";
  if (!open_tags_.empty()) {
    why += " The innermost block that needs to be closed is '" +
           open_tags_.back() + "'.";
  }
  refuse(std::move(why), token.position);
}

void Parser::check_target(const Expr& expr) const {
  switch (expr.kind) {
    case ExprKind::kName:
    case ExprKind::kNamespaceAttribute:
      return;
    case ExprKind::kTuple:
      for (const ExprPtr& child : expr.children) check_target(*child);
      return;
    default:
      refuse("can't assign to this expression", expr.position);
  }
}

ExprPtr Parser::target(Names ends, bool with_namespace) {
  const SpecialNames seen = seen_;  // storing is not reading
  ExprPtr expr = tuple(true, true, ends, false, with_namespace);
  check_target(*expr);
  seen_ = seen;
  return expr;
}

std::string Parser::name_target() {
  const Token& token = expect_name();
  for (const char* constant :
       {"true", "false", "none", "True", "False", "None"}) {
    if (token.text == constant) {
      refuse("can't assign to '" + token.text + "'", token.position);
    }
  }
  return token.text;
}

StatementPtr Parser::parse_set() {
  StatementPtr out = start(StatementKind::kSet);
  next();
  out->targets.push_back(target({}, true));
  if (skip_operator("=")) {
    out->expressions.push_back(tuple());
    return out;
  }
  out->kind = StatementKind::kSetBlock;
  out->filter = filter(nullptr, false);
  out->bodies.push_back(body_until({"endset"}));
  next();
  return out;
}

StatementPtr Parser::parse_for() {
  StatementPtr out = start(StatementKind::kFor);
  next();
  out->targets.push_back(target({"in"}, false));
  if (!skip_name("in")) refuse_current("'in'");
  out->expressions.push_back(tuple(false, false, {"recursive"}, false, false));
  if (skip_name("if")) out->condition = expression();
  out->is_recursive = skip_name("recursive");
  const uint32_t loops_seen = seen_.loop;
  ++loop_depth_;
  out->bodies.push_back(body_until({"endfor", "else"}));
  --loop_depth_;
  out->uses_loop = out->is_recursive || seen_.loop != loops_seen;
  out->bodies.emplace_back();
  if (next().text == "else") {
    out->bodies.back() = body_until({"endfor"});
    next();
  }
  return out;
}

StatementPtr Parser::parse_if() {
  const size_t mark = unknown_.size();
  StatementPtr out = start(StatementKind::kIf);
  next();
  for (;;) {
    out->expressions.push_back(tuple(false, false, {}, false, false));
    out->bodies.push_back(body_until({"elif", "else", "endif"}));
    const std::string& end = next().text;
    if (end == "elif") continue;
    if (end == "else") {
      out->bodies.push_back(body_until({"endif"}));
      next();
    }
    break;
  }
  unknown_.resize(mark);
  return out;
}

StatementPtr Parser::parse_with() {
  StatementPtr out = start(StatementKind::kWith);
  next();
  while (current().kind != TokenKind::kBlockEnd) {
    if (!out->targets.empty()) expect_operator(",");
    // A comma separates assignments, so that a target is one name here or a
    // tuple in parentheses.
    ExprPtr one = primary();
    check_target(*one);
    out->targets.push_back(std::move(one));
    expect_operator("=");
    out->expressions.push_back(expression());
  }
  out->bodies.push_back(body_until({"endwith"}));
  next();
  return out;
}

void Parser::signature(MacroCode* macro) {
  expect_operator("(");
  while (!at_operator(")")) {
    if (!macro->parameters.empty()) expect_operator(",");
    const Position position = current().position;
    std::string name = name_target();
    if (skip_operator("=")) {
      macro->defaults.push_back(expression());
    } else if (!macro->defaults.empty()) {
      refuse("non-default argument follows default argument", position);
    }
    if (macro->parameters.size() >= kParametersOfMacroMax) {
      refuse("the macro has too many parameters", position);
    }
    for (const std::string& other : macro->parameters) {
      if (other == name) refuse("duplicate argument '" + name + "'", position);
    }
    macro->parameters.push_back(std::move(name));
  }
  expect_operator(")");
}

void Parser::macro_body(MacroCode* macro, std::string_view end) {
  const SpecialNames before = seen_;
  const uint32_t loop_depth = std::exchange(loop_depth_, 0);
  macro->body = body_until({end});
  next();
  loop_depth_ = loop_depth;
  const auto uses = [&](const char* name, uint32_t now, uint32_t then) {
    if (now == then) return false;
    for (const std::string& parameter : macro->parameters) {
      if (parameter == name) return false;
    }
    return true;
  };
  macro->takes_caller = uses("caller", seen_.caller, before.caller);
  macro->takes_kwargs = uses("kwargs", seen_.kwargs, before.kwargs);
  macro->takes_varargs = uses("varargs", seen_.varargs, before.varargs);
}

StatementPtr Parser::parse_macro() {
  StatementPtr out = start(StatementKind::kMacro);
  next();
  out->macro = std::make_unique<MacroCode>();
  out->macro->name = name_target();
  signature(out->macro.get());
  macro_body(out->macro.get(), "endmacro");
  return out;
}

StatementPtr Parser::parse_call_block() {
  StatementPtr out = start(StatementKind::kCallBlock);
  next();
  out->macro = std::make_unique<MacroCode>();
  out->macro->name = "caller";
  if (at_operator("(")) signature(out->macro.get());
  ExprPtr expr = expression();
  if (expr->kind != ExprKind::kCall) refuse("expected call", expr->position);
  out->expressions.push_back(std::move(expr));
  macro_body(out->macro.get(), "endcall");
  return out;
}

StatementPtr Parser::parse_filter_block() {
  StatementPtr out = start(StatementKind::kFilterBlock);
  next();
  out->filter = filter(nullptr, true);
  out->bodies.push_back(body_until({"endfilter"}));
  next();
  return out;
}

StatementPtr Parser::parse_generation() {
  StatementPtr out = start(StatementKind::kGeneration);
  next();
  const uint32_t loop_depth = std::exchange(loop_depth_, 0);
  out->bodies.push_back(body_until({"endgeneration"}));
  loop_depth_ = loop_depth;
  next();
  return out;
}

StatementPtr Parser::parse_block() {
  StatementPtr out = start(StatementKind::kBlock);
  next();
  const std::string name = expect_name().text;
  skip_name("scoped");
  skip_name("required");
  const uint32_t loop_depth = std::exchange(loop_depth_, 0);
  out->bodies.push_back(body_until({"endblock"}));
  loop_depth_ = loop_depth;
  next();
  skip_name(name);
  return out;
}

StatementPtr Parser::parse_loop_control() {
  StatementPtr out =
      start(current().text == "break" ? StatementKind::kBreak
                                      : StatementKind::kContinue);
  const Token& token = next();
  if (loop_depth_ == 0) {
    refuse("'" + token.text + "' outside loop", token.position);
  }
  return out;
}

StatementPtr Parser::parse_print() {
  StatementPtr out = start(StatementKind::kOutput);
  next();
  while (current().kind != TokenKind::kBlockEnd) {
    if (!out->expressions.empty()) expect_operator(",");
    out->expressions.push_back(expression());
  }
  return out;
}

// Tags that need other templates: a chat template stands alone. They fail only
// when reached, as Jinja2 fails when it loads.
StatementPtr Parser::parse_unsupported() {
  StatementPtr out = start(StatementKind::kUnsupported);
  out->text =
      "the tag '" + next().text + "' is not supported in chat templates";
  if (out->text.find("'autoescape'") != std::string::npos) {
    refuse(out->text, out->position);
  }
  while (current().kind != TokenKind::kBlockEnd &&
         current().kind != TokenKind::kEnd) {
    next();
  }
  return out;
}

Template parse(std::string_view source) {
  if (source.size() > kSourceBytesMax) {
    fail("the template has " + std::to_string(source.size()) +
         " bytes; the most that is read is " + std::to_string(kSourceBytesMax));
  }
  return Parser(tokenize(source)).run();
}

}  // namespace mlx_flash::jinja
