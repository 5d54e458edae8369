// SPDX-License-Identifier: MIT
#include "checkpoint/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "base/check.h"
#include "base/quote.h"
#include "checkpoint/gguf_types.h"
#include "checkpoint/limits.h"

namespace mlx_flash {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"

// Limits, far above any real file. Memory that the header takes is bounded by
// them whatever the file claims.
constexpr uint64_t kMetadataMax = 1 << 16;  // entries
constexpr uint64_t kTensorCountMax = 1 << 20;
constexpr uint64_t kKeyBytesMax = 65535;       // the format's own limit
constexpr uint64_t kNameBytesMax = 1024;       // ggml: 64
constexpr uint64_t kNamesBytesMax = 64 << 20;  // all keys and names
constexpr uint64_t kStringsMax = 1 << 25;      // elements of all string arrays
constexpr uint32_t kRankMax = 4;               // GGML_MAX_DIMS

// Bytes of one value; 0 for strings and arrays.
uint64_t value_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

using Scalar = decltype(GgufMetadata::scalar);

template <typename T, typename Wide>
Result<Scalar> scalar_as(ByteReader& reader) {
  FLASH_ASSIGN_OR_RETURN(const T value, reader.number<T>());
  return Scalar(static_cast<Wide>(value));
}

Result<Scalar> read_scalar(ByteReader& reader, GgufType type) {
  switch (type) {
    case GgufType::kU8:
      return scalar_as<uint8_t, uint64_t>(reader);
    case GgufType::kI8:
      return scalar_as<int8_t, int64_t>(reader);
    case GgufType::kU16:
      return scalar_as<uint16_t, uint64_t>(reader);
    case GgufType::kI16:
      return scalar_as<int16_t, int64_t>(reader);
    case GgufType::kU32:
      return scalar_as<uint32_t, uint64_t>(reader);
    case GgufType::kI32:
      return scalar_as<int32_t, int64_t>(reader);
    case GgufType::kU64:
      return scalar_as<uint64_t, uint64_t>(reader);
    case GgufType::kI64:
      return scalar_as<int64_t, int64_t>(reader);
    case GgufType::kF32:
      return scalar_as<float, double>(reader);
    case GgufType::kF64:
      return scalar_as<double, double>(reader);
    case GgufType::kBool: {
      FLASH_ASSIGN_OR_RETURN(const uint8_t value, reader.number<uint8_t>());
      return Scalar(value != 0);
    }
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  FLASH_CHECK(!"a scalar type");
  return Scalar();
}

}  // namespace

std::string_view gguf_type_name(GgufType type) {
  constexpr std::string_view kNames[] = {"uint8",
                                         "int8",
                                         "uint16",
                                         "int16",
                                         "uint32",
                                         "int32",
                                         "float32",
                                         "bool",
                                         "string",
                                         "array",
                                         "uint64",
                                         "int64",
                                         "float64"};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

// Reads one header, from its first byte to its last.
class GgufParser {
 public:
  explicit GgufParser(const ByteSource& source)
      : name_(source.name()),
        size_(source.size()),
        reader_(source, 0, source.size()) {}

  Status parse(GgufFile& file) {
    uint64_t tensor_count = 0;
    uint64_t metadata_count = 0;
    FLASH_RETURN_IF_ERROR(preamble(file, tensor_count, metadata_count));
    for (uint64_t i = 0; i < metadata_count; ++i) {
      FLASH_RETURN_IF_ERROR(metadata_entry(file));
    }
    file.by_key_.reserve(file.metadata_.size());
    for (size_t i = 0; i < file.metadata_.size(); ++i) {
      const std::string& key = file.metadata_[i].key;
      if (!file.by_key_.emplace(key, i).second) {
        return invalid_input(
            fmt::format("{}: metadata {} twice", name_, quote(key)));
      }
    }
    for (uint64_t i = 0; i < tensor_count; ++i) {
      FLASH_RETURN_IF_ERROR(tensor_info(file));
    }
    return place_tensors(file);
  }

 private:
  Status bad(uint64_t at, const std::string& what) const {
    return invalid_input(fmt::format("{}: byte {}: {}", name_, at, what));
  }

  Status preamble(GgufFile& file,
                  uint64_t& tensor_count,
                  uint64_t& metadata_count) {
    FLASH_ASSIGN_OR_RETURN(const uint32_t magic, reader_.number<uint32_t>());
    if (magic != kMagic) return bad(0, "not a GGUF file (no magic number)");
    FLASH_ASSIGN_OR_RETURN(file.version_, reader_.number<uint32_t>());
    if (file.version_ != 2 && file.version_ != 3) {
      const bool swapped = file.version_ != 0 && (file.version_ & 0xffff) == 0;
      return unsupported(
          swapped ? fmt::format("{}: a big-endian GGUF file; only "
                                "little-endian ones can be used",
                                name_)
                  : fmt::format("{}: GGUF version {}; versions 2 and 3 can be "
                                "used",
                                name_,
                                file.version_));
    }
    FLASH_ASSIGN_OR_RETURN(tensor_count, reader_.number<uint64_t>());
    FLASH_ASSIGN_OR_RETURN(metadata_count, reader_.number<uint64_t>());
    // The least an entry takes: name length, rank, one dimension, type, offset;
    // key length, type, one byte.
    const uint64_t left = reader_.remaining();
    if (tensor_count > std::min(kTensorCountMax, left / 32)) {
      return bad(8,
                 fmt::format("{} tensors claimed, more than the file can hold",
                             tensor_count));
    }
    if (metadata_count > std::min(kMetadataMax, left / 13)) {
      return bad(16,
                 fmt::format("{} metadata entries claimed, more than the file "
                             "can hold",
                             metadata_count));
    }
    return {};
  }

  Result<std::string> short_text(uint64_t bytes_max, const char* what) {
    const uint64_t at = reader_.position();
    FLASH_ASSIGN_OR_RETURN(const uint64_t bytes, reader_.number<uint64_t>());
    if (bytes > bytes_max || bytes > reader_.remaining()) {
      return bad(at,
                 fmt::format("{} of {} bytes ({} at most)",
                             what,
                             bytes,
                             std::min(bytes_max, reader_.remaining())));
    }
    names_bytes_ += bytes;
    if (names_bytes_ > kNamesBytesMax) return bad(at, "names without end");
    return reader_.text(bytes);
  }

  Status metadata_entry(GgufFile& file) {
    const uint64_t at = reader_.position();
    GgufMetadata entry;
    FLASH_ASSIGN_OR_RETURN(entry.key, short_text(kKeyBytesMax, "a key"));
    FLASH_ASSIGN_OR_RETURN(const uint32_t type, reader_.number<uint32_t>());
    if (type > static_cast<uint32_t>(GgufType::kF64)) {
      return bad(
          at, fmt::format("metadata {} has type {}", quote(entry.key), type));
    }
    entry.type = static_cast<GgufType>(type);
    Status status;
    if (entry.type == GgufType::kString) {
      status = string_extent(entry);
    } else if (entry.type == GgufType::kArray) {
      status = array_extent(entry);
    } else {
      FLASH_ASSIGN_OR_RETURN(entry.scalar, read_scalar(reader_, entry.type));
    }
    if (!status.ok()) {
      return Status(
          status.code(),
          fmt::format("{} (metadata {})", status.message(), quote(entry.key)));
    }
    file.metadata_.push_back(std::move(entry));
    return {};
  }

  Status string_extent(GgufMetadata& entry) {
    FLASH_ASSIGN_OR_RETURN(entry.count, reader_.number<uint64_t>());
    entry.offset = reader_.position();
    entry.bytes = entry.count;
    return reader_.skip(entry.count);
  }

  Status array_extent(GgufMetadata& entry) {
    const uint64_t at = reader_.position();
    FLASH_ASSIGN_OR_RETURN(const uint32_t element, reader_.number<uint32_t>());
    FLASH_ASSIGN_OR_RETURN(entry.count, reader_.number<uint64_t>());
    entry.offset = reader_.position();
    if (element > static_cast<uint32_t>(GgufType::kF64)) {
      return bad(at, fmt::format("array elements of type {}", element));
    }
    entry.element = static_cast<GgufType>(element);
    if (entry.element == GgufType::kArray) {
      return bad(at, "an array of arrays, which no known key has");
    }
    if (entry.element != GgufType::kString) {
      const auto bytes =
          checked_multiply(entry.count, value_bytes(entry.element));
      if (!bytes || *bytes > reader_.remaining()) {
        return bad(at,
                   fmt::format("an array of {} elements, more than the file "
                               "can hold",
                               entry.count));
      }
      entry.bytes = *bytes;
      return reader_.skip(*bytes);
    }
    strings_ += std::min(entry.count, kStringsMax + 1);
    if (entry.count > reader_.remaining() / 8 || strings_ > kStringsMax) {
      return bad(at,
                 fmt::format("an array of {} strings, more than the file can "
                             "hold",
                             entry.count));
    }
    for (uint64_t i = 0; i < entry.count; ++i) {
      FLASH_ASSIGN_OR_RETURN(const uint64_t bytes, reader_.number<uint64_t>());
      FLASH_RETURN_IF_ERROR(reader_.skip(bytes));
    }
    entry.bytes = reader_.position() - entry.offset;
    return {};
  }

  Status tensor_info(GgufFile& file) {
    const uint64_t at = reader_.position();
    GgufTensor tensor;
    FLASH_ASSIGN_OR_RETURN(tensor.name,
                           short_text(kNameBytesMax, "a tensor name"));
    FLASH_ASSIGN_OR_RETURN(const uint32_t rank, reader_.number<uint32_t>());
    const std::string who = fmt::format("tensor {}", quote(tensor.name));
    if (rank == 0 || rank > kRankMax) {
      return bad(at, fmt::format("{} has {} dimensions", who, rank));
    }
    tensor.shape.resize(rank);
    for (uint32_t i = 0; i < rank; ++i) {
      FLASH_ASSIGN_OR_RETURN(tensor.shape[rank - 1 - i],
                             reader_.number<uint64_t>());
    }
    FLASH_ASSIGN_OR_RETURN(tensor.type, reader_.number<uint32_t>());
    FLASH_ASSIGN_OR_RETURN(tensor.offset, reader_.number<uint64_t>());
    const auto elements = checked_product(tensor.shape);
    if (!elements || *elements == 0) {
      return bad(at,
                 fmt::format("{} has the impossible shape [{}]",
                             who,
                             fmt::join(tensor.shape, ", ")));
    }
    tensor.type_name = "unknown";
    const GgmlType* type = find_ggml_type(tensor.type);
    if (type != nullptr) {
      tensor.type_name = type->name;
      if (tensor.shape.back() % type->block_values != 0) {
        return bad(at,
                   fmt::format("{}: rows of {} values are no multiple of {}'s "
                               "block of {}",
                               who,
                               tensor.shape.back(),
                               type->name,
                               type->block_values));
      }
      const auto bytes =
          checked_multiply(*elements / type->block_values, type->block_bytes);
      if (!bytes || *bytes > size_) {
        return bad(at,
                   fmt::format("{}: shape [{}] of {} needs more bytes than the "
                               "file has",
                               who,
                               fmt::join(tensor.shape, ", "),
                               type->name));
      }
      tensor.bytes = *bytes;
      tensor.dtype = type->dtype;
      if (type->kind) {
        tensor.format = type->dtype ? dense_format(*type->dtype)
                                    : block_format(*type->kind);
      }
    }
    file.tensors_.push_back(std::move(tensor));
    return {};
  }

  // Turns offsets in the data into offsets in the file.
  Status place_tensors(GgufFile& file) {
    uint64_t alignment = 32;
    if (const GgufMetadata* entry = file.find("general.alignment")) {
      const auto* value = std::get_if<uint64_t>(&entry->scalar);
      if (entry->type != GgufType::kU32 || value == nullptr ||
          !std::has_single_bit(*value)) {
        return invalid_input(fmt::format(
            "{}: general.alignment is not a power of two in 32 bits", name_));
      }
      alignment = *value;
    }
    const uint64_t header_end = reader_.position();
    file.data_offset_ = (header_end + alignment - 1) / alignment * alignment;
    if (file.tensors_.empty()) return {};
    const uint64_t data_bytes =
        size_ > file.data_offset_ ? size_ - file.data_offset_ : 0;
    std::unordered_set<std::string_view> names;
    names.reserve(file.tensors_.size());
    for (GgufTensor& tensor : file.tensors_) {
      const std::string who =
          fmt::format("{}: tensor {}", name_, quote(tensor.name));
      if (!names.insert(tensor.name).second) {
        return invalid_input(who + " twice");
      }
      if (tensor.offset % alignment != 0) {
        return invalid_input(
            fmt::format("{}: offset {} is no multiple of the alignment {}",
                        who,
                        tensor.offset,
                        alignment));
      }
      if (tensor.offset > data_bytes ||
          tensor.bytes > data_bytes - tensor.offset) {
        return invalid_input(fmt::format(
            "{}: bytes {}..+{} of the data, of which the file has {}: the file "
            "is cut short",
            who,
            tensor.offset,
            tensor.bytes,
            data_bytes));
      }
      tensor.offset += file.data_offset_;
    }
    return check_overlaps(file);
  }

  Status check_overlaps(const GgufFile& file) const {
    std::vector<size_t> order(file.tensors_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      const GgufTensor& x = file.tensors_[a];
      const GgufTensor& y = file.tensors_[b];
      return std::pair(x.offset, x.bytes) < std::pair(y.offset, y.bytes);
    });
    for (size_t i = 1; i < order.size(); ++i) {
      const GgufTensor& before = file.tensors_[order[i - 1]];
      const GgufTensor& after = file.tensors_[order[i]];
      if (after.offset < before.offset + before.bytes) {
        return invalid_input(
            fmt::format("{}: tensors {} and {} overlap at "
                        "byte {}",
                        name_,
                        quote(before.name),
                        quote(after.name),
                        after.offset));
      }
    }
    return {};
  }

  std::string name_;
  uint64_t size_ = 0;
  ByteReader reader_;
  uint64_t names_bytes_ = 0;  // of keys and names so far
  uint64_t strings_ = 0;      // elements of string arrays so far
};

Result<GgufFile> GgufFile::parse(std::unique_ptr<ByteSource> source) {
  GgufFile file;
  GgufParser parser(*source);
  file.source_ = std::move(source);
  FLASH_RETURN_IF_ERROR(parser.parse(file));
  return file;
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(auto source, FileSource::open(path));
  return parse(std::make_unique<FileSource>(std::move(source)));
}

const GgufMetadata* GgufFile::find(std::string_view key) const {
  const auto found = by_key_.find(key);
  return found == by_key_.end() ? nullptr : &metadata_[found->second];
}

}  // namespace mlx_flash
