// SPDX-License-Identifier: MIT
#pragma once

// The heap objects behind Value, and how to make them. Constructors charge the
// heap and fail at its limits. Contents do not change after construction,
// except for what is named mutable here.

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace mlx_flash::jinja {

class Interpreter;
struct Args;

class StringObject : public Object {
 public:
  StringObject(Heap* heap, std::string value);
  size_t length() const;  // code points
  bool is_ascii() const { return length() == text.size(); }

  const std::string text;
  bool is_markup = false;  // went through |safe or |escape

 private:
  mutable size_t length_ = SIZE_MAX;
};

// Why a value is undefined: the message of the error its use raises.
class UndefinedObject : public Object {
 public:
  UndefinedObject(Heap* heap, std::string message);
  const std::string message;
};

class ListObject : public Object {  // lists and tuples
 public:
  ListObject(Heap* heap, Values values);
  const Values items;
  bool is_group = false;  // what groupby gives: (grouper, list)
};

class DictObject : public Object {
 public:
  explicit DictObject(Heap* heap) : Object(heap) { charge(sizeof(DictObject)); }
  struct Entry {
    Value key;
    Value value;
  };
  // Keeps the place of a key that is there already. Fails on a key that Python
  // cannot hash.
  void set(const Value& key, Value value);
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  const std::vector<Entry>& entries() const { return entries_; }
  size_t size() const { return entries_.size(); }

 private:
  size_t locate(const Value& key, size_t hash) const;

  std::vector<Entry> entries_;
  std::unordered_multimap<size_t, size_t> index_;  // only of larger dicts
};

class DictViewObject : public Object {
 public:
  enum class Part { kKeys, kValues, kItems };
  DictViewObject(Heap* heap, Value dict_value, Part which);
  const DictObject& dict() const { return source.as<DictObject>(); }
  const Value source;
  const Part part;
};

class RangeObject : public Object {
 public:
  RangeObject(Heap* heap, int64_t from, int64_t to, int64_t by);
  size_t size() const;
  int64_t at(size_t index) const {
    return start + static_cast<int64_t>(index) * step;
  }
  const int64_t start;
  const int64_t stop;
  const int64_t step;
};

// Lazy and consumed by reading, as the generators that filters return.
class IteratorObject : public Object {
 public:
  using Next = std::function<bool(Value*)>;
  IteratorObject(Heap* heap, Next function, const char* name, uint32_t below);
  bool next(Value* item);  // mutable
  const char* const type_name;

 private:
  Next next_;
};

// Bound methods and global functions.
class FunctionObject : public Object {
 public:
  using Body = std::function<Value(Interpreter&, const Args&)>;
  FunctionObject(Heap* heap, std::string its_name, Body code, uint32_t below);
  const std::string name;
  const Body body;
};

// Objects that can take part in cycles: the interpreter holds each until the
// end and then takes them apart with forget().
class ScopedObject : public Object {
 public:
  using Object::Object;
  virtual void forget() = 0;
};

class NamespaceObject : public ScopedObject {
 public:
  explicit NamespaceObject(Heap* heap) : ScopedObject(heap) { charge(128); }
  void set(const std::string& name, Value value);  // mutable
  const Value* find(std::string_view name) const;
  void forget() override { attributes_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> attributes_;
};

class CyclerObject : public ScopedObject {
 public:
  CyclerObject(Heap* heap, Values values);
  void forget() override { items.clear(); }
  Values items;
  size_t position = 0;  // mutable
};

class JoinerObject : public Object {
 public:
  JoinerObject(Heap* heap, Value text);
  const Value separator;
  bool used = false;  // mutable
};

Value make_string(Heap& heap, std::string text);
Value make_markup(Heap& heap, std::string text);
Value make_undefined(Heap& heap, std::string message);
Value make_list(Heap& heap, Values items);
Value make_tuple(Heap& heap, Values items);
Value make_big_int(Heap& heap, std::string digits);
Value make_iterator(Heap& heap,
                    IteratorObject::Next next,
                    const char* type_name,
                    uint32_t depth);
Value make_function(Heap& heap,
                    std::string name,
                    FunctionObject::Body body,
                    uint32_t depth = 0);

inline bool is_markup(const Value& v) {
  return v.is_string() && v.as<StringObject>().is_markup;
}

}  // namespace mlx_flash::jinja
