// SPDX-License-Identifier: MIT
// Length, iteration, membership, indexing and slicing of values.
#include <algorithm>

#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace mlx_flash::jinja {
namespace {

bool has_slice_bound(const Value& bound) {
  return !bound.is_none();
}

struct SliceRange {
  int64_t start;
  int64_t step;
  size_t count;
  size_t index(size_t i) const {
    return static_cast<size_t>(start + static_cast<int64_t>(i) * step);
  }
};

int64_t clamp_bound(int64_t bound, int64_t size, int64_t low, int64_t high) {
  if (bound < 0) {
    bound += size;
    return std::max(bound, low);
  }
  return std::min(bound, high);
}

// Python's slice.indices and the number of elements it selects.
SliceRange resolve_slice(int64_t size,
                         const Value& start,
                         const Value& stop,
                         const Value& step) {
  const char* what = "slice indices";
  const int64_t by = has_slice_bound(step) ? to_index(step, what) : 1;
  if (by == 0) fail("slice step cannot be zero");
  const int64_t low = by < 0 ? -1 : 0;
  const int64_t high = by < 0 ? size - 1 : size;
  int64_t from = by < 0 ? high : low;
  int64_t to = by < 0 ? low : high;
  if (has_slice_bound(start)) {
    from = clamp_bound(to_index(start, what), size, low, high);
  }
  if (has_slice_bound(stop)) {
    to = clamp_bound(to_index(stop, what), size, low, high);
  }
  const uint64_t gap =
      by > 0 ? static_cast<uint64_t>(std::max<int64_t>(to - from, 0))
             : static_cast<uint64_t>(std::max<int64_t>(from - to, 0));
  const uint64_t stride =
      by > 0 ? static_cast<uint64_t>(by) : ~static_cast<uint64_t>(by) + 1;
  return {from, by, gap == 0 ? 0 : static_cast<size_t>((gap - 1) / stride + 1)};
}

std::string slice_text(Heap& heap,
                       const StringObject& text,
                       const SliceRange& range) {
  heap.step_bytes(text.text.size());
  const size_t start = static_cast<size_t>(range.start);
  if (range.count == 0) return "";
  if (text.is_ascii() && range.step == 1) {
    return text.text.substr(start, range.count);
  }
  if (range.step == 1) {
    const size_t begin = byte_offset(text.text, start);
    const std::string_view rest = std::string_view(text.text).substr(begin);
    return std::string(rest.substr(0, byte_offset(rest, range.count)));
  }
  // Any other step: look characters up through their offsets.
  heap.check_room(text.length() * sizeof(uint32_t));
  std::vector<uint32_t> begins;
  begins.reserve(text.length() + 1);
  for (size_t at = 0; at < text.text.size(); next_code_point(text.text, &at)) {
    begins.push_back(static_cast<uint32_t>(at));
  }
  begins.push_back(static_cast<uint32_t>(text.text.size()));
  std::string out;
  for (size_t i = 0; i < range.count; ++i) {
    const size_t place = range.index(i);
    out.append(text.text, begins[place], begins[place + 1] - begins[place]);
  }
  return out;
}

Value view_item(Heap& heap, const DictViewObject& view, size_t index) {
  const DictObject::Entry& entry = view.dict().entries()[index];
  switch (view.part) {
    case DictViewObject::Part::kKeys:
      return entry.key;
    case DictViewObject::Part::kValues:
      return entry.value;
    case DictViewObject::Part::kItems:
      return make_tuple(heap, {entry.key, entry.value});
  }
  return Value::none();
}

}  // namespace

int64_t length_or_none(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return static_cast<int64_t>(value.as<StringObject>().length());
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.as<ListObject>().items.size());
    case Kind::kDict:
      return static_cast<int64_t>(value.as<DictObject>().size());
    case Kind::kDictView:
      return static_cast<int64_t>(value.as<DictViewObject>().dict().size());
    case Kind::kRange:
      return static_cast<int64_t>(value.as<RangeObject>().size());
    default:
      return -1;
  }
}

int64_t length(const Value& value) {
  const int64_t size = length_or_none(value);
  if (size < 0) {
    fail(std::string("object of type '") + type_name(value) + "' has no len()");
  }
  return size;
}

bool Iteration::possible(const Value& value) {
  return value.is_undefined() || value.is(Kind::kIterator) ||
         length_or_none(value) >= 0;
}

Iteration::Iteration(Heap& heap, Value value)
    : heap_(&heap), value_(std::move(value)) {
  if (!possible(value_)) {
    fail(std::string("'") + type_name(value_) + "' object is not iterable");
  }
}

bool Iteration::next(Value* item) {
  heap_->step();
  switch (value_.kind()) {
    case Kind::kString: {
      const std::string& text = value_.text();
      if (at_ >= text.size()) return false;
      const size_t begin = at_;
      next_code_point(text, &at_);
      *item = make_string(*heap_, text.substr(begin, at_ - begin));
      return true;
    }
    case Kind::kList:
    case Kind::kTuple: {
      const Values& items = value_.as<ListObject>().items;
      if (at_ >= items.size()) return false;
      *item = items[at_++];
      return true;
    }
    case Kind::kDict: {
      const auto& entries = value_.as<DictObject>().entries();
      if (at_ >= entries.size()) return false;
      *item = entries[at_++].key;
      return true;
    }
    case Kind::kDictView: {
      const auto& view = value_.as<DictViewObject>();
      if (at_ >= view.dict().size()) return false;
      *item = view_item(*heap_, view, at_++);
      return true;
    }
    case Kind::kRange: {
      const auto& range = value_.as<RangeObject>();
      if (at_ >= range.size()) return false;
      *item = Value::integer(range.at(at_++));
      return true;
    }
    case Kind::kIterator:
      return value_.as<IteratorObject>().next(item);
    default:
      return false;
  }
}

Values to_values(Heap& heap, const Value& value) {
  Values out;
  Iteration items(heap, value);
  Value item;
  while (items.next(&item)) {
    if ((out.size() & 0xFF) == 0xFF) {
      heap.check_room(out.size() * 2 * sizeof(Value));
    }
    out.push_back(std::move(item));
  }
  return out;
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kString: {
      if (!item.is_string()) {
        fail(std::string("'in <string>' requires string as left operand, "
                         "not ") +
             type_name(item));
      }
      heap.step_bytes(container.text().size());
      return find_text(container.text(), item.text()) != std::string_view::npos;
    }
    case Kind::kDict:
      return container.as<DictObject>().find(item) != nullptr;
    case Kind::kDictView: {
      const auto& view = container.as<DictViewObject>();
      if (view.part == DictViewObject::Part::kKeys) {
        return view.dict().find(item) != nullptr;
      }
      break;
    }
    default:
      break;
  }
  if (!Iteration::possible(container)) {
    fail(std::string("argument of type '") + type_name(container) +
         "' is not iterable");
  }
  Iteration items(heap, container);
  Value candidate;
  while (items.next(&candidate)) {
    if (equals(heap, candidate, item)) return true;
  }
  return false;
}

bool element(Heap& heap, const Value& value, int64_t index, Value* out) {
  const int64_t size = length_or_none(value);
  if (index < 0) index += size;
  if (index < 0 || index >= size) return false;
  const auto place = static_cast<size_t>(index);
  switch (value.kind()) {
    case Kind::kString: {
      const auto& text = value.as<StringObject>();
      *out = make_string(heap, slice_text(heap, text, {index, 1, 1}));
      return true;
    }
    case Kind::kList:
    case Kind::kTuple: {
      Value item = value.as<ListObject>().items[place];
      *out = std::move(item);
      return true;
    }
    case Kind::kRange:
      *out = Value::integer(value.as<RangeObject>().at(place));
      return true;
    default:
      return false;
  }
}

Value slice(Heap& heap,
            const Value& value,
            const Value& start,
            const Value& stop,
            const Value& step) {
  switch (value.kind()) {
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
      break;
    case Kind::kUndefined:
      fail(value.object() ? value.as<UndefinedObject>().message
                          : "the value is undefined");
    case Kind::kDict:
      fail("unhashable type: 'slice'");
    default:
      fail(std::string("'") + type_name(value) +
           "' object is not subscriptable");
  }
  const SliceRange range = resolve_slice(length(value), start, stop, step);
  if (value.is_string()) {
    std::string text = slice_text(heap, value.as<StringObject>(), range);
    return is_markup(value) ? make_markup(heap, std::move(text))
                            : make_string(heap, std::move(text));
  }
  if (value.is(Kind::kRange)) {
    const auto& source = value.as<RangeObject>();
    int64_t from = 0;
    int64_t by = 0;
    int64_t to = 0;
    if (__builtin_mul_overflow(range.start, source.step, &from) ||
        __builtin_add_overflow(from, source.start, &from) ||
        __builtin_mul_overflow(source.step, range.step, &by) ||
        __builtin_mul_overflow(static_cast<int64_t>(range.count), by, &to) ||
        __builtin_add_overflow(to, from, &to)) {
      fail("a range does not fit in 64 bits");
    }
    return Value(Kind::kRange, new RangeObject(&heap, from, to, by));
  }
  const Values& source = value.as<ListObject>().items;
  heap.check_room(range.count * sizeof(Value));
  Values items;
  items.reserve(range.count);
  for (size_t i = 0; i < range.count; ++i) {
    items.push_back(source[range.index(i)]);
  }
  return value.is(Kind::kList) ? make_list(heap, std::move(items))
                               : make_tuple(heap, std::move(items));
}

}  // namespace mlx_flash::jinja
