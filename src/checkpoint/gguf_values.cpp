// SPDX-License-Identifier: MIT
// Metadata values of a GGUF file by key.

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "base/quote.h"
#include "checkpoint/gguf.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kStringBytesMax = uint64_t{64} << 20;
constexpr uint64_t kArrayBytesMax = uint64_t{256} << 20;
constexpr uint64_t kNumbersMax = uint64_t{1} << 22;  // of one array

Status wrong_type(const GgufFile& file,
                  const GgufMetadata& entry,
                  std::string_view wanted) {
  const bool array = entry.type == GgufType::kArray;
  return invalid_input(
      fmt::format("{}: metadata {} is {}{}, {} is wanted",
                  file.name(),
                  quote(entry.key),
                  array ? "an array of " : "of type ",
                  gguf_type_name(array ? entry.element : entry.type),
                  wanted));
}

Status too_large(const GgufFile& file, const GgufMetadata& entry) {
  return invalid_input(fmt::format("{}: metadata {} has {} bytes, too many",
                                   file.name(),
                                   quote(entry.key),
                                   entry.bytes));
}

// A view that does not own the file's source.
class BorrowedSource : public ByteSource {
 public:
  BorrowedSource(const GgufFile& file, uint64_t size)
      : file_(&file), size_(size) {}
  const std::string& name() const override { return file_->name(); }
  uint64_t size() const override { return size_; }
  Status read(uint64_t offset, std::span<std::byte> out) const override {
    return file_->read(offset, out);
  }

 private:
  const GgufFile* file_;
  uint64_t size_;
};

// The array's elements, each handed to `take(reader)`, which reads one.
template <typename Take>
Status for_each_element(const GgufFile& file,
                        const GgufMetadata& entry,
                        Take take) {
  if (entry.bytes > kArrayBytesMax) return too_large(file, entry);
  const uint64_t end = entry.offset + entry.bytes;
  const BorrowedSource source(file, end);
  ByteReader reader(source, entry.offset, end);
  for (uint64_t i = 0; i < entry.count; ++i) {
    FLASH_RETURN_IF_ERROR(take(reader));
  }
  return {};
}

template <typename T>
Status append_integer(ByteReader& reader, std::vector<int64_t>& out) {
  FLASH_ASSIGN_OR_RETURN(const T value, reader.number<T>());
  if constexpr (sizeof(T) == 8 && std::is_unsigned_v<T>) {
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return invalid_input("a number beyond 63 bits");
    }
  }
  out.push_back(static_cast<int64_t>(value));
  return {};
}

Status append_integer(GgufType type,
                      ByteReader& reader,
                      std::vector<int64_t>& out) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kBool:
      return append_integer<uint8_t>(reader, out);
    case GgufType::kI8:
      return append_integer<int8_t>(reader, out);
    case GgufType::kU16:
      return append_integer<uint16_t>(reader, out);
    case GgufType::kI16:
      return append_integer<int16_t>(reader, out);
    case GgufType::kU32:
      return append_integer<uint32_t>(reader, out);
    case GgufType::kI32:
      return append_integer<int32_t>(reader, out);
    case GgufType::kU64:
      return append_integer<uint64_t>(reader, out);
    default:
      return append_integer<int64_t>(reader, out);
  }
}

}  // namespace

Result<std::optional<uint64_t>> GgufFile::unsigned_integer(
    std::string_view key) const {
  const GgufMetadata* entry = find(key);
  if (entry == nullptr) return std::optional<uint64_t>();
  if (const auto* value = std::get_if<uint64_t>(&entry->scalar)) {
    return std::optional(*value);
  }
  const auto* value = std::get_if<int64_t>(&entry->scalar);
  if (value != nullptr && *value >= 0) {
    return std::optional(static_cast<uint64_t>(*value));
  }
  return wrong_type(*this, *entry, "a number that is not negative");
}

Result<std::optional<bool>> GgufFile::boolean(std::string_view key) const {
  const GgufMetadata* entry = find(key);
  if (entry == nullptr) return std::optional<bool>();
  if (const auto* value = std::get_if<bool>(&entry->scalar)) {
    return std::optional(*value);
  }
  return wrong_type(*this, *entry, "bool");
}

Result<std::optional<std::string>> GgufFile::string(
    std::string_view key) const {
  const GgufMetadata* entry = find(key);
  if (entry == nullptr) return std::optional<std::string>();
  if (entry->type != GgufType::kString) {
    return wrong_type(*this, *entry, "a string");
  }
  if (entry->bytes > kStringBytesMax) return too_large(*this, *entry);
  std::string text(static_cast<size_t>(entry->bytes), '\0');
  FLASH_RETURN_IF_ERROR(
      read(entry->offset, std::as_writable_bytes(std::span(text))));
  return std::optional(std::move(text));
}

Result<StringTable> GgufFile::strings(std::string_view key) const {
  StringTable table;
  const GgufMetadata* entry = find(key);
  if (entry == nullptr) return table;
  if (entry->type != GgufType::kArray || entry->element != GgufType::kString) {
    return wrong_type(*this, *entry, "an array of strings");
  }
  if (entry->bytes > kArrayBytesMax) return too_large(*this, *entry);
  if (entry->count > kNumbersMax) return too_large(*this, *entry);
  // Exact: the table is never held twice while it grows.
  table.reserve(static_cast<size_t>(entry->count),
                static_cast<size_t>(entry->bytes - entry->count * 8));
  std::string one;  // its memory is used again
  const auto take_one = [&](ByteReader& reader) -> Status {
    FLASH_ASSIGN_OR_RETURN(const uint64_t bytes, reader.number<uint64_t>());
    if (bytes > reader.remaining()) return reader.skip(bytes);
    one.resize(static_cast<size_t>(bytes));
    FLASH_RETURN_IF_ERROR(reader.read(std::as_writable_bytes(std::span(one))));
    table.push_back(one);
    return {};
  };
  FLASH_RETURN_IF_ERROR(for_each_element(*this, *entry, take_one));
  return table;
}

Result<std::vector<float>> GgufFile::floats(std::string_view key) const {
  std::vector<float> values;
  const GgufMetadata* entry = find(key);
  if (entry == nullptr) return values;
  if (entry->type != GgufType::kArray || entry->element != GgufType::kF32) {
    return wrong_type(*this, *entry, "an array of float32");
  }
  if (entry->count > kNumbersMax) return too_large(*this, *entry);
  values.reserve(static_cast<size_t>(entry->count));
  const auto take_one = [&](ByteReader& reader) -> Status {
    FLASH_ASSIGN_OR_RETURN(const float value, reader.number<float>());
    values.push_back(value);
    return {};
  };
  FLASH_RETURN_IF_ERROR(for_each_element(*this, *entry, take_one));
  return values;
}

Result<std::vector<int64_t>> GgufFile::integers(std::string_view key) const {
  std::vector<int64_t> values;
  const GgufMetadata* entry = find(key);
  if (entry == nullptr) return values;
  if (entry->type != GgufType::kArray || entry->element == GgufType::kString ||
      entry->element == GgufType::kF32 || entry->element == GgufType::kF64) {
    return wrong_type(*this, *entry, "an array of whole numbers");
  }
  if (entry->count > kNumbersMax) return too_large(*this, *entry);
  values.reserve(static_cast<size_t>(entry->count));
  const auto take_one = [&](ByteReader& reader) {
    return append_integer(entry->element, reader, values)
        .at(fmt::format("{}: metadata {}", name(), quote(entry->key)));
  };
  FLASH_RETURN_IF_ERROR(for_each_element(*this, *entry, take_one));
  return values;
}

}  // namespace mlx_flash
