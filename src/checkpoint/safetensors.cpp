// SPDX-License-Identifier: MIT
#include "checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string_view>
#include <unordered_set>

#include "base/json.h"
#include "base/quote.h"
#include "checkpoint/json_feed.h"
#include "checkpoint/limits.h"

namespace mlx_flash {
namespace {

constexpr size_t kNameBytesMax = 4096;

struct SafetensorsDType {
  std::string_view name;
  uint32_t bits;
  std::optional<DType> dtype;
};

// All the library knows, so that sizes are checked for those we cannot use.
constexpr SafetensorsDType kDTypes[] = {
    {"F32", 32, DType::kF32},       {"F16", 16, DType::kF16},
    {"BF16", 16, DType::kBF16},     {"U32", 32, DType::kU32},
    {"U8", 8, DType::kU8},          {"I8", 8, DType::kI8},
    {"I32", 32, DType::kI32},       {"I64", 64, DType::kI64},
    {"BOOL", 8, std::nullopt},      {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},      {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},      {"C64", 64, std::nullopt},
    {"F8_E4M3", 8, DType::kF8E4M3}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt},   {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},   {"F6_E3M2", 6, std::nullopt},
};

const SafetensorsDType* find_dtype(std::string_view name) {
  for (const SafetensorsDType& row : kDTypes) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

// {"name": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}, ...}
class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  explicit HeaderHandler(uint64_t data_bytes) : data_bytes_(data_bytes) {}

  std::vector<SafetensorsEntry> take() { return std::move(entries_); }
  const std::string& error() const { return error_; }

  bool null() override { return other_value(); }
  bool boolean(bool) override { return other_value(); }
  bool number_integer(number_integer_t) override {
    if (in_metadata()) return true;
    return fail("a negative number");
  }
  bool number_float(number_float_t, const string_t&) override {
    if (in_metadata()) return true;
    return fail("a number that is not a whole number of 64 bits");
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (in_metadata()) return true;
    if (depth_ != 3) return other_value();
    if (field_ == Field::kShape) {
      if (entry_.shape.size() == kTensorRankMax) {
        return fail(fmt::format("more than {} dimensions", kTensorRankMax));
      }
      entry_.shape.push_back(value);
      return true;
    }
    if (offsets_used_ == 2) return fail("data_offsets has more than 2 numbers");
    offsets_[offsets_used_++] = value;
    return true;
  }
  bool string(string_t& value) override {
    if (in_metadata()) return true;
    if (depth_ != 2 || field_ != Field::kDType) return other_value();
    entry_.dtype_text = value;
    return true;
  }
  bool binary(binary_t&) override { return fail("a binary value"); }

  bool start_object(std::size_t) override {
    if (depth_ == 0 || depth_ == 1) {
      ++depth_;
      return true;
    }
    if (metadata_) return fail("__metadata__ holds more than strings");
    return other_value();
  }
  bool end_object() override {
    --depth_;
    if (depth_ == 0) return true;
    if (metadata_) {
      metadata_ = false;
      return true;
    }
    return finish_entry();
  }
  bool start_array(std::size_t) override {
    if (metadata_) return fail("__metadata__ holds more than strings");
    if (depth_ != 2 || (field_ != Field::kShape && field_ != Field::kOffsets)) {
      return other_value();
    }
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }

  bool key(string_t& name) override {
    if (depth_ == 1) return start_entry(name);
    if (metadata_) return true;
    return start_field(name);
  }

  bool parse_error(std::size_t,
                   const std::string& token,
                   const nlohmann::detail::exception&) override {
    return fail(fmt::format("not JSON near {}", quote(token, 40)));
  }

 private:
  enum class Field { kNone, kDType, kShape, kOffsets };

  bool in_metadata() const { return metadata_ && depth_ == 2; }

  bool fail(std::string what) {
    if (!error_.empty()) return false;
    if (depth_ >= 2 && !metadata_) {
      what = fmt::format("tensor {}: {}", quote(entry_.name), what);
    }
    error_ = std::move(what);
    return false;
  }

  bool other_value() {
    if (in_metadata()) return true;
    if (depth_ == 0) return fail("the header is not a JSON object");
    if (depth_ == 1) {
      return fail(fmt::format("{} is not an object", quote(entry_.name)));
    }
    switch (field_) {
      case Field::kDType:
        return fail("dtype is not a string");
      case Field::kShape:
        return fail("shape is not a list of numbers");
      case Field::kOffsets:
        return fail("data_offsets is not a list of two numbers");
      case Field::kNone:
        break;
    }
    return fail("an unexpected value");
  }

  bool start_entry(const std::string& name) {
    metadata_ = name == "__metadata__";
    entry_ = {};
    entry_.name = printable(name, 100);
    if (metadata_) return true;
    if (name.size() > kNameBytesMax) return fail("a tensor name too long");
    if (name.empty()) return fail("a tensor without a name");
    if (entries_.size() == kTensorsMax) {
      return fail(fmt::format("more than {} tensors", kTensorsMax));
    }
    entry_.name = name;
    offsets_used_ = 0;
    seen_ = 0;
    return true;
  }

  bool start_field(const std::string& name) {
    field_ = name == "dtype"          ? Field::kDType
             : name == "shape"        ? Field::kShape
             : name == "data_offsets" ? Field::kOffsets
                                      : Field::kNone;
    if (field_ == Field::kNone) {
      return fail(fmt::format("unknown field {}", quote(name, 40)));
    }
    const unsigned bit = 1U << static_cast<unsigned>(field_);
    if ((seen_ & bit) != 0) {
      return fail(fmt::format("field {} twice", quote(name, 40)));
    }
    seen_ |= bit;
    return true;
  }

  bool finish_entry() {
    ++depth_;  // messages name the tensor
    if (entry_.dtype_text.empty()) return fail("no dtype");
    if ((seen_ & (1U << static_cast<unsigned>(Field::kShape))) == 0) {
      return fail("no shape");
    }
    if (offsets_used_ != 2) return fail("data_offsets must be two numbers");
    const auto [begin, end] = offsets_;
    if (begin > end || end > data_bytes_) {
      return fail(
          fmt::format("data_offsets [{}, {}] do not lie inside the file's {} "
                      "bytes of data",
                      begin,
                      end,
                      data_bytes_));
    }
    entry_.offset = begin;
    entry_.bytes = end - begin;
    const auto elements = checked_product(entry_.shape);
    if (!elements) return fail("the shape overflows 64 bits");
    if (const SafetensorsDType* dtype = find_dtype(entry_.dtype_text)) {
      const auto bits = checked_multiply(*elements, dtype->bits);
      if (!bits || *bits % 8 != 0 || *bits / 8 != entry_.bytes) {
        return fail(fmt::format("shape [{}] of {} does not take {} bytes",
                                fmt::join(entry_.shape, ", "),
                                dtype->name,
                                entry_.bytes));
      }
      entry_.dtype = dtype->dtype;
    }
    entry_.shape.shrink_to_fit();
    entries_.push_back(std::move(entry_));
    entry_ = {};
    --depth_;
    return true;
  }

  uint64_t data_bytes_;
  std::vector<SafetensorsEntry> entries_;
  SafetensorsEntry entry_;  // being read
  std::array<uint64_t, 2> offsets_{};
  size_t offsets_used_ = 0;
  unsigned seen_ = 0;  // bits of Field
  Field field_ = Field::kNone;
  int depth_ = 0;
  bool metadata_ = false;
  std::string error_;
};

Status check_entries(const std::string& file,
                     const std::vector<SafetensorsEntry>& entries,
                     uint64_t data_begin) {
  std::unordered_set<std::string_view> names;
  names.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) {
    if (!names.insert(entry.name).second) {
      return invalid_input(
          fmt::format("{}: tensor {} twice", file, quote(entry.name)));
    }
  }
  for (size_t i = 1; i < entries.size(); ++i) {
    const SafetensorsEntry& before = entries[i - 1];
    if (entries[i].offset < before.offset + before.bytes) {
      return invalid_input(
          fmt::format("{}: tensors {} and {} overlap at data offset {}",
                      file,
                      quote(before.name),
                      quote(entries[i].name),
                      entries[i].offset - data_begin));
    }
  }
  return {};
}

}  // namespace

Result<std::vector<SafetensorsEntry>> read_safetensors_header(
    const ByteSource& source) {
  const std::string& file = source.name();
  if (source.size() < 8) {
    return invalid_input(
        fmt::format("{}: {} bytes are too few for a safetensors file",
                    file,
                    source.size()));
  }
  ByteReader length_reader(source, 0, 8);
  FLASH_ASSIGN_OR_RETURN(const uint64_t length,
                         length_reader.number<uint64_t>());
  if (length > source.size() - 8) {
    return invalid_input(fmt::format(
        "{}: the header claims {} bytes, {} are in the file: it is cut short "
        "or not a safetensors file",
        file,
        length,
        source.size() - 8));
  }
  if (length > kSafetensorsHeaderBytesMax) {
    return invalid_input(
        fmt::format("{}: a header of {} bytes; at most {} are read",
                    file,
                    length,
                    kSafetensorsHeaderBytesMax));
  }
  const uint64_t data_begin = 8 + length;
  ByteReader reader(source, 8, data_begin);
  JsonFeed feed(reader);
  HeaderHandler handler(source.size() - data_begin);
  const bool parsed =
      Json::sax_parse(FeedIterator{&feed}, FeedIterator{}, &handler);
  FLASH_RETURN_IF_ERROR(feed.error());
  if (!parsed || feed.token_too_long()) {
    const std::string reason = feed.token_too_long()
                                   ? "a string or number that never ends"
                                   : handler.error();
    return invalid_input(
        fmt::format("{}: header, byte {}: {}", file, feed.position(), reason));
  }
  std::vector<SafetensorsEntry> entries = handler.take();
  for (SafetensorsEntry& entry : entries) entry.offset += data_begin;
  std::stable_sort(entries.begin(),
                   entries.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return std::pair(a.offset, a.bytes) <
                            std::pair(b.offset, b.bytes);
                   });
  FLASH_RETURN_IF_ERROR(check_entries(file, entries, data_begin));
  return entries;
}

}  // namespace mlx_flash
