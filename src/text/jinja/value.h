// SPDX-License-Identifier: MIT
#pragma once

// Values of a template: Python's, as far as templates can see them.
//
// A Value is 16 bytes; texts and containers are shared by a count that is not
// atomic: a value stays on the thread of its rendering. Lists and dicts never
// change once they are visible to the template (its sandbox is immutable).

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/heap.h"

namespace mlx_flash::jinja {

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kBigInt,  // decimal digits beyond 64 bits: can be printed and compared
  kString,
  kList,
  kTuple,
  kDict,
  kDictView,  // what keys(), values() and items() give
  kRange,
  kIterator,  // consumed by reading, as Python's generators
  kNamespace,
  kMacro,
  kLoop,
  kFunction,  // a global function or a bound method
  kCycler,
  kJoiner,
};

// Base of everything that lives on the heap.
class Object {
 public:
  explicit Object(Heap* heap) : heap_(heap) {}
  virtual ~Object() { heap_->release(charged_); }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  Heap* heap() const { return heap_; }
  void charge(size_t bytes) {
    heap_->charge(bytes);
    charged_ += bytes;
  }
  // Nesting below this object; bounded, so that destruction is.
  uint32_t depth() const { return depth_; }
  void contain(uint32_t depth);

  void retain() noexcept { ++references_; }
  void drop() noexcept {
    if (--references_ == 0) delete this;
  }
  uint32_t references() const { return references_; }

 private:
  Heap* const heap_;
  size_t charged_ = 0;
  uint32_t references_ = 0;
  uint32_t depth_ = 0;
};

template <typename T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T* object) : object_(object) {
    if (object_) object_->retain();
  }
  Ref(const Ref& other) : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_) object_->drop();
  }

  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

class Value {
 public:
  Value() : kind_(Kind::kUndefined), object_(nullptr) {}
  static Value none() { return Value(Kind::kNone); }
  static Value boolean(bool value);
  static Value integer(int64_t value);
  static Value real(double value);
  Value(Kind kind, Object* object) : kind_(kind), object_(object) {
    if (object_) object_->retain();
  }
  Value(const Value& other) : kind_(other.kind_), bits_(other.bits_) {
    if (is_shared()) object_->retain();
  }
  Value(Value&& other) noexcept : kind_(other.kind_), bits_(other.bits_) {
    other.kind_ = Kind::kNone;
  }
  Value& operator=(const Value& other) {
    Value copy(other);
    return *this = std::move(copy);
  }
  Value& operator=(Value&& other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(bits_, other.bits_);
    return *this;
  }
  ~Value() {
    if (is_shared()) object_->drop();
  }

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_string() const { return kind_ == Kind::kString; }
  // REQUIRES: kind() is kBool, kInt, kFloat respectively
  bool as_bool() const { return bits_ != 0; }
  int64_t as_int() const { return static_cast<int64_t>(bits_); }
  double as_float() const;

  // The heap object; null for plain values and nameless undefined ones.
  Object* object() const { return is_shared() ? object_ : nullptr; }
  template <typename T>
  T& as() const {
    return static_cast<T&>(*object_);
  }
  // REQUIRES: is_string()
  const std::string& text() const;

  uint32_t depth() const { return is_shared() ? object_->depth() : 0; }

 private:
  explicit Value(Kind kind) : kind_(kind), bits_(0) {}
  bool is_shared() const {
    return (kind_ >= Kind::kBigInt || kind_ == Kind::kUndefined) &&
           object_ != nullptr;
  }

  Kind kind_;
  union {
    uint64_t bits_;
    Object* object_;
  };
};

using Values = std::vector<Value>;

}  // namespace mlx_flash::jinja
