// SPDX-License-Identifier: MIT
// Statements.
#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/interpreter_guards.h"

namespace mlx_flash::jinja {
namespace {

const std::string kLoopName = "loop";

}  // namespace

void Scope::set(const std::string& name, Value value) {
  for (auto& [key, place] : names_) {
    if (key == &name || *key == name) {
      place = std::move(value);
      return;
    }
  }
  heap()->step(names_.size() / 8);
  charge(2 * sizeof(names_[0]));
  names_.emplace_back(&name, std::move(value));
}

const Value* Scope::find(const std::string& name) const {
  heap()->step(names_.size() / 16);
  for (const auto& [key, value] : names_) {
    if (key == &name || *key == name) return &value;
  }
  return nullptr;
}

Interpreter::Interpreter(const Template& source, Heap& heap, Now now)
    : template_(source), heap_(heap), now_(std::move(now)) {
  constants_.resize(source.constant_count);
  outputs_.emplace_back();
}

Interpreter::~Interpreter() {
  // Objects in cycles first, one by one, so that none is destroyed from deep
  // within another.
  for (const Ref<ScopedObject>& object : held_) object->forget();
  if (root_) root_->clear();
}

std::string Interpreter::run(const Value& variables) {
  std::vector<std::string> names;  // of the functions; scopes point at them
  try {
    globals_ = Ref<Scope>(new Scope(&heap_, Ref<Scope>()));
    for (size_t i = 0; global_function(i) != nullptr; ++i) {
      names.emplace_back(global_function(i)->name);
    }
    for (size_t i = 0; i < names.size(); ++i) {
      globals_->set(
          names[i],
          make_function(heap_, names[i], global_function(i)->function));
    }
    root_ = Ref<Scope>(new Scope(&heap_, globals_));
    for (const auto& entry : variables.as<DictObject>().entries()) {
      root_->set(entry.key.text(), entry.value);
    }
    scope_ = root_;
    execute(template_.body);
  } catch (TemplateError& error) {
    if (error.position().line == 0) error.set_position(position_);
    throw;
  }
  return std::move(outputs_[0]);
}

Value Interpreter::hold(Kind kind, ScopedObject* object) {
  Value out(kind, object);
  heap_.charge(sizeof(Ref<ScopedObject>));
  held_.emplace_back(object);
  return out;
}

Ref<Scope> Interpreter::push_scope() {
  return Ref<Scope>(new Scope(&heap_, scope_));
}

void Interpreter::write(std::string_view text) {
  heap_.charge(text.size());
  heap_.step_bytes(text.size());
  outputs_.back().append(text);
}

void Interpreter::write(const Value& value) {
  if (value.is_string()) return write(value.text());
  if (value.is_undefined()) return;
  write(to_str(heap_, value));
}

void Interpreter::begin_capture() {
  outputs_.emplace_back();
}

std::string Interpreter::end_capture() {
  std::string out = std::move(outputs_.back());
  outputs_.pop_back();
  heap_.release(out.size());
  return out;
}

Interpreter::Flow Interpreter::execute(const Body& body) {
  for (const StatementPtr& statement : body) {
    const Flow flow = execute(*statement);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Statement& statement) {
  const DepthGuard guard(this);
  heap_.step();
  position_ = statement.position;
  switch (statement.kind) {
    case StatementKind::kText:
      write(statement.text);
      return Flow::kNormal;
    case StatementKind::kOutput:
      for (const ExprPtr& expr : statement.expressions) write(evaluate(*expr));
      return Flow::kNormal;
    case StatementKind::kIf:
      return execute_if(statement);
    case StatementKind::kFor:
      return execute_for(statement);
    case StatementKind::kSet:
      assign(*statement.targets[0], evaluate(*statement.expressions[0]));
      return Flow::kNormal;
    case StatementKind::kSetBlock:
    case StatementKind::kFilterBlock:
      return execute_captured(statement);
    case StatementKind::kMacro: {
      const MacroCode* code = statement.macro.get();
      scope_->set(code->name,
                  hold(Kind::kMacro, new MacroObject(&heap_, code, scope_)));
      return Flow::kNormal;
    }
    case StatementKind::kCallBlock:
      execute_call_block(statement);
      return Flow::kNormal;
    case StatementKind::kGeneration:
      execute_generation(statement);
      return Flow::kNormal;
    case StatementKind::kWith:
      return execute_with(statement);
    case StatementKind::kBlock: {
      // A block sees the top level only.
      const Ref<Scope> top(new Scope(&heap_, root_));
      const ScopeGuard scope(this, top);
      return execute(statement.bodies[0]);
    }
    case StatementKind::kBreak:
      return Flow::kBreak;
    case StatementKind::kContinue:
      return Flow::kContinue;
    case StatementKind::kUnsupported:
      fail(statement.text);
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_if(const Statement& statement) {
  for (size_t i = 0; i < statement.expressions.size(); ++i) {
    if (is_true(evaluate(*statement.expressions[i]))) {
      return execute(statement.bodies[i]);
    }
  }
  if (statement.bodies.size() > statement.expressions.size()) {
    return execute(statement.bodies.back());
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_for(const Statement& statement) {
  const Value iterable = evaluate(*statement.expressions[0]);
  position_ = statement.expressions[0]->position;
  return run_loop(statement, iterable, 0);
}

bool Interpreter::passes(const Statement& statement,
                         const Value& item,
                         const Ref<Scope>& outer) {
  const Ref<Scope> inner(new Scope(&heap_, outer));
  const ScopeGuard scope(this, inner);
  assign(*statement.targets[0], item);
  return is_true(evaluate(*statement.condition));
}

Interpreter::Flow Interpreter::run_loop_body(const Statement& statement,
                                             const Value& item,
                                             const Value& loop,
                                             const Ref<Scope>& outer) {
  const Ref<Scope> inner(new Scope(&heap_, outer));
  const ScopeGuard scope(this, inner);
  assign(*statement.targets[0], item);
  if (statement.uses_loop) inner->set(kLoopName, loop);
  return execute(statement.bodies[0]);
}

Interpreter::Flow Interpreter::run_loop(const Statement& statement,
                                        const Value& iterable,
                                        int64_t depth) {
  const Ref<Scope> outer = scope_;
  Value source = iterable;
  if (statement.condition) {
    // Lazy, as in Jinja2: the condition sees what the body has changed.
    auto items = std::make_shared<Iteration>(heap_, iterable);
    source = make_iterator(
        heap_,
        [this, items, outer, &statement](Value* item) {
          while (items->next(item)) {
            if (passes(statement, *item, outer)) return true;
          }
          return false;
        },
        "generator",
        iterable.depth());
  }
  bool completed = false;
  const auto after = [&](Flow flow) {
    if (flow == Flow::kNormal) completed = true;
    return flow != Flow::kBreak;
  };
  Value item;
  if (statement.uses_loop) {
    const size_t held_before = held_.size();
    Value loop = hold(Kind::kLoop,
                      new LoopObject(&heap_, &statement, source, outer, depth));
    auto& state = loop.as<LoopObject>();
    while (state.next(&item)) {
      if (!after(run_loop_body(statement, item, loop, outer))) break;
    }
    if (held_.size() == held_before + 1 && state.references() == 2) {
      held_.pop_back();
      heap_.release(sizeof(Ref<ScopedObject>));
    }
  } else {
    Iteration items(heap_, source);
    while (items.next(&item)) {
      if (!after(run_loop_body(statement, item, item, outer))) break;
    }
  }
  // As Jinja2: a body that was left early does not count as having run.
  if (completed || statement.bodies[1].empty()) return Flow::kNormal;
  const Ref<Scope> inner(new Scope(&heap_, outer));
  const ScopeGuard scope(this, inner);
  return execute(statement.bodies[1]);
}

Interpreter::Flow Interpreter::execute_with(const Statement& statement) {
  const Ref<Scope> inner = push_scope();
  for (size_t i = 0; i < statement.targets.size(); ++i) {
    Value value = evaluate(*statement.expressions[i]);
    const ScopeGuard scope(this, inner);
    assign(*statement.targets[i], std::move(value));
  }
  const ScopeGuard scope(this, inner);
  return execute(statement.bodies[0]);
}

void Interpreter::execute_call_block(const Statement& statement) {
  const MacroCode* code = statement.macro.get();
  const size_t held_before = held_.size();
  {
    const Value caller =
        hold(Kind::kMacro, new MacroObject(&heap_, code, scope_));
    write(call_expression(*statement.expressions[0], &caller));
  }
  if (held_.size() == held_before + 1 && held_.back()->references() == 1) {
    held_.pop_back();
    heap_.release(sizeof(Ref<ScopedObject>));
  }
}

void Interpreter::execute_generation(const Statement& statement) {
  const ScopeGuard scope(this, push_scope());
  execute(statement.bodies[0]);
}

// {% set x %}...{% endset %} and {% filter f %}...{% endfilter %}
Interpreter::Flow Interpreter::execute_captured(const Statement& statement) {
  begin_capture();
  Flow flow = Flow::kNormal;
  {
    const ScopeGuard scope(this, push_scope());
    flow = execute(statement.bodies[0]);
  }
  Value value = text(end_capture());
  if (flow != Flow::kNormal) return flow;
  if (statement.filter) value = filter(*statement.filter, &value);
  if (statement.kind == StatementKind::kSetBlock) {
    assign(*statement.targets[0], std::move(value));
  } else {
    write(value);
  }
  return flow;
}

void Interpreter::assign(const Expr& target, Value value) {
  if (target.kind == ExprKind::kName) {
    scope_->set(target.text, std::move(value));
    return;
  }
  if (target.kind == ExprKind::kTuple) return unpack(target, value);
  Expr reference;
  reference.kind = ExprKind::kName;
  reference.text = target.text;
  const Value holder = name(reference);
  position_ = target.position;
  if (holder.is_undefined()) fail_undefined(holder);
  if (!holder.is(Kind::kNamespace)) {
    fail("cannot assign attribute on non-namespace object");
  }
  if (target.name[0] == '_') {
    fail(
        "Chat templates cannot store underscore-prefixed attributes on a "
        "namespace, but got '" +
        target.name + "'. Please rename the attribute.");
  }
  holder.as<NamespaceObject>().set(target.name, std::move(value));
}

void Interpreter::unpack(const Expr& target, const Value& value) {
  if (!Iteration::possible(value)) {
    fail(std::string("cannot unpack non-iterable ") + type_name(value) +
         " object");
  }
  const size_t count = target.children.size();
  Iteration items(heap_, value);
  Values parts;
  Value item;
  while (parts.size() < count && items.next(&item)) parts.push_back(item);
  if (parts.size() < count) {
    fail("not enough values to unpack (expected " + std::to_string(count) +
         ", got " + std::to_string(parts.size()) + ")");
  }
  if (items.next(&item)) {
    fail("too many values to unpack (expected " + std::to_string(count) + ")");
  }
  for (size_t i = 0; i < count; ++i) assign(*target.children[i], parts[i]);
}

}  // namespace mlx_flash::jinja
