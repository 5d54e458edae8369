// SPDX-License-Identifier: MIT
#pragma once

// Shared by the files that implement Interpreter; nobody else includes this.

#include <string>

#include "text/jinja/interpreter.h"

namespace mlx_flash::jinja {

// Bounds the C++ stack: every expression and statement holds one.
class Interpreter::DepthGuard {
 public:
  explicit DepthGuard(Interpreter* interpreter) : interpreter_(interpreter) {
    if (interpreter_->eval_depth_ >=
        interpreter_->heap_.limits().eval_depth_max) {
      fail("maximum recursion depth exceeded");
    }
    ++interpreter_->eval_depth_;
  }
  ~DepthGuard() { --interpreter_->eval_depth_; }
  DepthGuard(const DepthGuard&) = delete;
  DepthGuard& operator=(const DepthGuard&) = delete;

 private:
  Interpreter* const interpreter_;
};

// Enters a scope and returns to the one before.
class ScopeGuard {
 public:
  ScopeGuard(Interpreter* interpreter, Ref<Scope> scope)
      : interpreter_(interpreter), before_(interpreter->scope_) {
    interpreter_->scope_ = std::move(scope);
  }
  ~ScopeGuard() { interpreter_->scope_ = std::move(before_); }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

 private:
  Interpreter* const interpreter_;
  Ref<Scope> before_;
};

// Attributes that are no methods: loop.index, namespace fields, macro.name.
Value get_property(Interpreter& in,
                   const Value& object,
                   const std::string& name,
                   bool* found);

}  // namespace mlx_flash::jinja
