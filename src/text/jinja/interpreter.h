// SPDX-License-Identifier: MIT
#pragma once

// Walks the AST of one rendering. Belongs to one thread; the Template it reads
// may be shared.

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/objects.h"
#include "text/jinja/operators.h"

namespace mlx_flash::jinja {

// Variables of one block. A lookup walks outwards, as Python's closures do.
class Scope : public Object {
 public:
  Scope(Heap* heap, Ref<Scope> outer) : Object(heap), parent(std::move(outer)) {
    charge(96);
  }
  void set(const std::string& name, Value value);
  const Value* find(const std::string& name) const;  // in this scope only
  void clear() { names_.clear(); }
  const Ref<Scope> parent;

 private:
  // Names are owned by the template, which outlives every rendering.
  std::vector<std::pair<const std::string*, Value>> names_;
};

class MacroObject : public ScopedObject {
 public:
  MacroObject(Heap* heap, const MacroCode* its_code, Ref<Scope> its_scope);
  void forget() override { scope = Ref<Scope>(); }
  const MacroCode* const code;
  Ref<Scope> scope;
};

class LoopObject : public ScopedObject {
 public:
  LoopObject(Heap* heap,
             const Statement* of,
             Value iterable,
             Ref<Scope> where,
             int64_t depth);
  void forget() override;
  // The next item, as Python's LoopContext pulls it.
  bool next(Value* item);
  bool peek(Value* item);
  int64_t length();

  const Statement* const statement;
  Ref<Scope> scope;  // where the loop stands, for recursive calls
  const int64_t depth0;
  int64_t index0 = -1;
  Value current;
  Value before;
  bool has_changed_value = false;
  Value changed_value;

 private:
  Value iterable_;
  Iteration items_;
  std::vector<Value> ahead_;  // read early, in order
  size_t ahead_at_ = 0;
  int64_t length_ = -1;
};

// Arguments of one call.
struct Args {
  Values positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

class Interpreter {
 public:
  using Now = std::function<std::string(const std::string& format)>;

  // `variables` is a dict; all must outlive the interpreter.
  Interpreter(const Template& source, Heap& heap, Now now);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  std::string run(const Value& variables);

  // For built-in functions, filters and tests.
  Heap& heap() { return heap_; }
  Value text(std::string value) { return make_string(heap_, std::move(value)); }
  Value call(const Value& callee, const Args& args);
  Value get_attribute(const Value& object, const std::string& name);
  Value get_item(const Value& object, const Value& key);
  std::string now(const std::string& format) { return now_(format); }
  // Keeps an object that may be part of a cycle until the end.
  Value hold(Kind kind, ScopedObject* object);

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  class DepthGuard;

  // Expressions (evaluate.cpp)
  Value evaluate(const Expr& expr);
  Value constant(const Expr& expr);
  Value slice_expression(const Expr& expr);
  Value name(const Expr& expr);
  Value list(const Expr& expr);
  Value dict(const Expr& expr);
  Value concat(const Expr& expr);
  Value compare(const Expr& expr);
  bool compare_two(CompareOp op, const Value& left, const Value& right);
  Value condition(const Expr& expr);
  Value unary(const Expr& expr);
  Value call_expression(const Expr& expr, const Value* caller);
  Value filter(const Expr& expr, const Value* body);
  Value test(const Expr& expr);
  Args arguments(const CallArguments& call);
  Value attribute(const Value& object, const std::string& name, bool* found);

  // Calls (call.cpp)
  Value call_macro(const MacroObject& macro, const Args& args);
  void bind_parameters(const MacroCode& code, const Args& args, Scope* scope);
  Value call_loop(LoopObject& loop, const Args& args);

  // Statements (execute.cpp)
  Flow execute(const Body& body);
  Flow execute(const Statement& statement);
  Flow execute_if(const Statement& statement);
  Flow execute_for(const Statement& statement);
  Flow run_loop(const Statement& statement,
                const Value& iterable,
                int64_t depth);
  Flow run_loop_body(const Statement& statement,
                     const Value& item,
                     const Value& loop,
                     const Ref<Scope>& outer);
  bool passes(const Statement& statement,
              const Value& item,
              const Ref<Scope>& outer);
  Flow execute_with(const Statement& statement);
  void execute_call_block(const Statement& statement);
  void execute_generation(const Statement& statement);
  Flow execute_captured(const Statement& statement);
  void assign(const Expr& target, Value value);
  void unpack(const Expr& target, const Value& value);
  void write(std::string_view text);
  void write(const Value& value);
  void begin_capture();
  std::string end_capture();
  Ref<Scope> push_scope();

  const Template& template_;
  Heap& heap_;
  Now now_;
  Values constants_;  // string literals, made when first used
  Ref<Scope> globals_;
  Ref<Scope> root_;
  Ref<Scope> scope_;
  std::vector<Ref<ScopedObject>> held_;
  std::vector<std::string> outputs_;
  Position position_;
  uint32_t eval_depth_ = 0;
  uint32_t call_depth_ = 0;

  friend class ScopeGuard;
};

}  // namespace mlx_flash::jinja
