// SPDX-License-Identifier: MIT
#pragma once

// A parsed template. Immutable after parsing and shared by renderings on any
// thread: it holds plain text and numbers, never a Value.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/heap.h"

namespace mlx_flash::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind : uint8_t {
  kString,  // text, id = place in the constants of a rendering
  kInt,     // integer
  kBigInt,  // text
  kFloat,   // real
  kBool,    // integer
  kNone,
  kName,     // text
  kList,     // children
  kTuple,    // children
  kDict,     // children: key, value, key, value, ...
  kGetattr,  // children[0], text
  kGetitem,  // children[0], children[1]
  kSlice,    // children[0] and three bounds, null when absent
  kCall,     // children[0], call
  kFilter,   // children[0] (null in a block), text, call
  kTest,     // children[0], text, call
  kUnary,    // op '+', '-' or '!' for not
  kBinary,   // op: a BinaryOp
  kConcat,   // children
  kCompare,  // children; text holds one operator for each but the first
  kAnd,
  kOr,
  kCondition,           // children: test, then, otherwise (null when absent)
  kNamespaceAttribute,  // target only: text is the namespace, name its field
};

// Operators of kCompare.
enum class CompareOp : char {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> keyword;
  ExprPtr star;         // *args
  ExprPtr double_star;  // **kwargs
};

struct Expr {
  ExprKind kind;
  Position position;
  uint32_t depth = 1;  // of the tree below and including this node
  uint32_t op = 0;
  uint32_t id = 0;
  int64_t integer = 0;
  double real = 0;
  std::string text;
  std::string name;
  std::vector<ExprPtr> children;
  std::unique_ptr<CallArguments> call;
};

struct Statement;
using StatementPtr = std::unique_ptr<Statement>;
using Body = std::vector<StatementPtr>;

// Macros, and the bodies of call blocks.
struct MacroCode {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  Body body;
  bool takes_caller = false;
  bool takes_kwargs = false;
  bool takes_varargs = false;
};

enum class StatementKind : uint8_t {
  kText,        // text
  kOutput,      // expressions
  kIf,          // branches: conditions in expressions, bodies; then otherwise
  kFor,         // target, expressions[0] = iterable, condition, body, otherwise
  kSet,         // target, expressions[0]
  kSetBlock,    // target, body, filter
  kMacro,       // macro
  kCallBlock,   // expressions[0] = the call, macro = the caller
  kGeneration,  // body
  kFilterBlock,  // filter, body
  kWith,         // targets, expressions, body
  kBlock,        // body
  kBreak,
  kContinue,
  kUnsupported,  // text: why; fails when reached
};

struct Statement {
  StatementKind kind;
  Position position;
  std::string text;
  std::vector<ExprPtr> expressions;
  std::vector<ExprPtr> targets;
  ExprPtr condition;
  ExprPtr filter;  // a chain of kFilter that ends in a null child
  std::vector<Body> bodies;
  std::unique_ptr<MacroCode> macro;
  bool is_recursive = false;
  bool uses_loop = false;
};

struct Template {
  Body body;
  uint32_t constant_count = 0;
};

}  // namespace mlx_flash::jinja
