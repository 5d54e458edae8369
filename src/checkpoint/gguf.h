// SPDX-License-Identifier: MIT
#pragma once

// The header of a GGUF file (versions 2 and 3, little endian): metadata and
// where the tensors lie. Format: docs/gguf.md of ggml.
//
// Strings and arrays of the metadata stay in the file (a tokenizer's are
// megabytes): the header keeps where they are, and they are read on demand.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/gguf_vocab.h"
#include "base/status.h"
#include "base/string_table.h"
#include "base/weight_format.h"
#include "checkpoint/byte_source.h"

namespace mlx_flash {

// Types of metadata values, numbered as in the file.
enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
std::string_view gguf_type_name(GgufType type);

struct GgufMetadata {
  std::string key;
  GgufType type = GgufType::kU8;
  // Numbers and bools, widened.
  std::variant<std::monostate, bool, int64_t, uint64_t, double> scalar;
  // Strings (count: their bytes) and arrays (count: their elements).
  GgufType element = GgufType::kU8;  // of arrays
  uint64_t count = 0;
  uint64_t offset = 0;  // of the string's bytes, of the first element
  uint64_t bytes = 0;   // of them all, lengths included
};

struct GgufTensor {
  std::string name;             // as in the file
  std::vector<uint64_t> shape;  // outermost first (the file has it reversed)
  uint32_t type = 0;            // ggml_type
  std::string_view type_name;   // "Q4_1"; "unknown" outside the table
  // None: a type we cannot use; then `bytes` is 0 if its size is unknown too.
  std::optional<WeightFormat> format;  // float and block types
  std::optional<DType> dtype;          // float and integer types
  uint64_t offset = 0;                 // in the file
  uint64_t bytes = 0;
};

// Immutable after open; thread-safe.
class GgufFile {
 public:
  static Result<GgufFile> open(const std::string& path);
  static Result<GgufFile> parse(std::unique_ptr<ByteSource> source);

  const std::string& name() const { return source_->name(); }
  uint32_t version() const { return version_; }
  uint64_t data_offset() const { return data_offset_; }
  const std::vector<GgufMetadata>& metadata() const { return metadata_; }
  // In file order. All inside the file, without overlaps, names differ.
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // Null if there is none.
  const GgufMetadata* find(std::string_view key) const;

  // Values by key: nothing if the key is absent, an error that names the key if
  // it has another type. Integers of any width and sign are taken, and floats
  // where a float is wanted.
  Result<std::optional<uint64_t>> unsigned_integer(std::string_view key) const;
  Result<std::optional<bool>> boolean(std::string_view key) const;
  Result<std::optional<std::string>> string(std::string_view key) const;
  Result<StringTable> strings(std::string_view key) const;  // empty if absent
  Result<std::vector<float>> floats(std::string_view key) const;
  Result<std::vector<int64_t>> integers(std::string_view key) const;

  // `bytes` bytes of the tensor data, for the few small tensors that carry
  // hyper-parameters.
  Status read(uint64_t offset, std::span<std::byte> out) const {
    return source_->read(offset, out);
  }

 private:
  friend class GgufParser;
  GgufFile() = default;

  std::unique_ptr<ByteSource> source_;
  uint32_t version_ = 0;
  uint64_t data_offset_ = 0;
  std::vector<GgufMetadata> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_key_;  // into metadata_
};

// The tokenizer in the metadata of the file at `path` (of a split file, the
// first part). Fails if there is none, or if its parts contradict each other.
Result<GgufVocab> read_gguf_vocab(const std::string& path);
Result<GgufVocab> read_gguf_vocab(const GgufFile& file);

}  // namespace mlx_flash
