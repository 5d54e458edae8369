// SPDX-License-Identifier: MIT
#include "text/jinja/objects.h"

#include <cstring>

#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

// What malloc adds to a block, roughly.
constexpr size_t kBlockBytes = 16;
// Dicts up to this size are searched from the front.
constexpr size_t kScanMax = 8;
constexpr size_t kIndexEntryBytes = 48;

uint32_t depth_of(const Values& values) {
  uint32_t depth = 0;
  for (const Value& value : values) depth = std::max(depth, value.depth());
  return depth;
}

}  // namespace

Value Value::boolean(bool value) {
  Value out(Kind::kBool);
  out.bits_ = value ? 1 : 0;
  return out;
}

Value Value::integer(int64_t value) {
  Value out(Kind::kInt);
  out.bits_ = static_cast<uint64_t>(value);
  return out;
}

Value Value::real(double value) {
  Value out(Kind::kFloat);
  std::memcpy(&out.bits_, &value, sizeof(value));
  return out;
}

double Value::as_float() const {
  double out = 0;
  std::memcpy(&out, &bits_, sizeof(out));
  return out;
}

const std::string& Value::text() const {
  return as<StringObject>().text;
}

void Object::contain(uint32_t depth) {
  if (depth + 1 > heap_->limits().value_depth_max) {
    fail("values are nested deeper than " +
         std::to_string(heap_->limits().value_depth_max) + " levels");
  }
  depth_ = std::max(depth_, depth + 1);
}

StringObject::StringObject(Heap* heap, std::string value)
    : Object(heap), text(std::move(value)) {
  charge(sizeof(StringObject) + kBlockBytes +
         (text.capacity() > 15 ? text.capacity() + kBlockBytes : 0));
  heap->step_bytes(text.size());
}

size_t StringObject::length() const {
  if (length_ == SIZE_MAX) length_ = count_code_points(text);
  return length_;
}

UndefinedObject::UndefinedObject(Heap* heap, std::string why)
    : Object(heap), message(std::move(why)) {
  charge(sizeof(UndefinedObject) + kBlockBytes + message.capacity());
}

ListObject::ListObject(Heap* heap, Values values)
    : Object(heap), items(std::move(values)) {
  charge(sizeof(ListObject) + 2 * kBlockBytes +
         items.capacity() * sizeof(Value));
  heap->step(items.size() / 16);
  contain(depth_of(items));
}

void DictObject::set(const Value& key, Value value) {
  const size_t hash = hash_value(*heap(), key);
  const size_t place = locate(key, hash);
  contain(std::max(key.depth(), value.depth()));
  if (place != SIZE_MAX) {
    entries_[place].value = std::move(value);
    return;
  }
  charge(2 * sizeof(Entry));
  entries_.push_back({key, std::move(value)});
  if (entries_.size() <= kScanMax) return;
  if (index_.empty()) {
    charge(kScanMax * kIndexEntryBytes);
    for (size_t i = 0; i + 1 < entries_.size(); ++i) {
      index_.emplace(hash_value(*heap(), entries_[i].key), i);
    }
  }
  charge(kIndexEntryBytes);
  index_.emplace(hash, entries_.size() - 1);
}

size_t DictObject::locate(const Value& key, size_t hash) const {
  if (index_.empty()) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (equals(*heap(), entries_[i].key, key)) return i;
    }
    return SIZE_MAX;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    heap()->step();
    if (equals(*heap(), entries_[it->second].key, key)) return it->second;
  }
  return SIZE_MAX;
}

const Value* DictObject::find(const Value& key) const {
  const size_t place = locate(key, hash_value(*heap(), key));
  return place == SIZE_MAX ? nullptr : &entries_[place].value;
}

const Value* DictObject::find(std::string_view key) const {
  const auto matches = [&](size_t i) {
    return entries_[i].key.is_string() && entries_[i].key.text() == key;
  };
  if (index_.empty()) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (matches(i)) return &entries_[i].value;
    }
    return nullptr;
  }
  const auto [begin, end] = index_.equal_range(hash_text(key));
  for (auto it = begin; it != end; ++it) {
    heap()->step();
    if (matches(it->second)) return &entries_[it->second].value;
  }
  return nullptr;
}

DictViewObject::DictViewObject(Heap* heap, Value dict_value, Part which)
    : Object(heap), source(std::move(dict_value)), part(which) {
  charge(sizeof(DictViewObject) + kBlockBytes);
  contain(source.depth());
}

RangeObject::RangeObject(Heap* heap, int64_t from, int64_t to, int64_t by)
    : Object(heap), start(from), stop(to), step(by) {
  charge(sizeof(RangeObject) + kBlockBytes);
}

size_t RangeObject::size() const {
  const auto distance = [](int64_t low, int64_t high, int64_t by) {
    // Unsigned arithmetic: the ends may lie 2^64 apart.
    const uint64_t gap =
        static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    return static_cast<size_t>((gap - 1) / static_cast<uint64_t>(by) + 1);
  };
  if (step > 0) return start < stop ? distance(start, stop, step) : 0;
  if (start <= stop) return 0;
  const uint64_t by = ~static_cast<uint64_t>(step) + 1;
  const uint64_t gap =
      static_cast<uint64_t>(start) - static_cast<uint64_t>(stop);
  return static_cast<size_t>((gap - 1) / by + 1);
}

IteratorObject::IteratorObject(Heap* heap,
                               Next function,
                               const char* name,
                               uint32_t below)
    : Object(heap), type_name(name), next_(std::move(function)) {
  charge(sizeof(IteratorObject) + 6 * kBlockBytes);
  contain(below);
}

bool IteratorObject::next(Value* item) {
  heap()->step();
  if (!next_) return false;
  if (next_(item)) return true;
  next_ = nullptr;
  return false;
}

FunctionObject::FunctionObject(Heap* heap,
                               std::string its_name,
                               Body code,
                               uint32_t below)
    : Object(heap), name(std::move(its_name)), body(std::move(code)) {
  charge(sizeof(FunctionObject) + 4 * kBlockBytes);
  contain(below);
}

void NamespaceObject::set(const std::string& name, Value value) {
  // The value's depth is not added: namespaces are taken apart one by one.
  for (auto& [key, place] : attributes_) {
    if (key == name) {
      place = std::move(value);
      return;
    }
  }
  charge(2 * sizeof(attributes_[0]) + name.size());
  attributes_.emplace_back(name, std::move(value));
}

const Value* NamespaceObject::find(std::string_view name) const {
  for (const auto& [key, value] : attributes_) {
    if (key == name) return &value;
  }
  return nullptr;
}

CyclerObject::CyclerObject(Heap* heap, Values values)
    : ScopedObject(heap), items(std::move(values)) {
  charge(sizeof(CyclerObject) + items.capacity() * sizeof(Value));
}

JoinerObject::JoinerObject(Heap* heap, Value text)
    : Object(heap), separator(std::move(text)) {
  charge(sizeof(JoinerObject) + kBlockBytes);
  contain(separator.depth());
}

Value make_string(Heap& heap, std::string text) {
  return Value(Kind::kString, new StringObject(&heap, std::move(text)));
}

Value make_markup(Heap& heap, std::string text) {
  Value out = make_string(heap, std::move(text));
  out.as<StringObject>().is_markup = true;
  return out;
}

Value make_undefined(Heap& heap, std::string message) {
  return Value(Kind::kUndefined,
               new UndefinedObject(&heap, std::move(message)));
}

Value make_list(Heap& heap, Values items) {
  return Value(Kind::kList, new ListObject(&heap, std::move(items)));
}

Value make_tuple(Heap& heap, Values items) {
  return Value(Kind::kTuple, new ListObject(&heap, std::move(items)));
}

Value make_big_int(Heap& heap, std::string digits) {
  return Value(Kind::kBigInt, new StringObject(&heap, std::move(digits)));
}

Value make_iterator(Heap& heap,
                    IteratorObject::Next next,
                    const char* type_name,
                    uint32_t depth) {
  return Value(Kind::kIterator,
               new IteratorObject(&heap, std::move(next), type_name, depth));
}

Value make_function(Heap& heap,
                    std::string name,
                    FunctionObject::Body body,
                    uint32_t depth) {
  return Value(
      Kind::kFunction,
      new FunctionObject(&heap, std::move(name), std::move(body), depth));
}

}  // namespace mlx_flash::jinja
