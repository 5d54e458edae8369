// SPDX-License-Identifier: MIT
#pragma once

// Small safetensors and GGUF files for tests, made in memory. They can be made
// wrong in any field: the writers check nothing.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mlx_flash::testing {

// A folder of its own below the system's temporary folder, removed at the end.
class TempFolder {
 public:
  TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  ~TempFolder();

  const std::string& path() const { return path_; }
  // Writes a file and returns its path.
  std::string write(const std::string& name, std::string_view bytes) const;

 private:
  std::string path_;
};

struct TestTensor {
  std::string name;
  std::string dtype;  // "F32", "U32", ...
  std::vector<uint64_t> shape;
  std::string data;
};

// A safetensors file of the tensors, one after the other.
std::string safetensors_bytes(const std::vector<TestTensor>& tensors);

// A safetensors file with this text as header, before `data`.
std::string safetensors_with_header(std::string_view header,
                                    std::string_view data);

// `count` values of `dtype`, all bytes zero, with the length they take.
// Quantised parts: give them as U32, BF16, U8.
TestTensor zeros(std::string name,
                 std::string dtype,
                 std::vector<uint64_t> shape);

// A GGUF file, field by field. Shapes are given outermost first, as everywhere
// in this project; the writer reverses them.
class GgufWriter {
 public:
  explicit GgufWriter(uint32_t version = 3) : version_(version) {}

  GgufWriter& u32(std::string_view key, uint32_t value);
  GgufWriter& u64(std::string_view key, uint64_t value);
  GgufWriter& i32(std::string_view key, int32_t value);
  GgufWriter& f32(std::string_view key, float value);
  GgufWriter& boolean(std::string_view key, bool value);
  GgufWriter& string(std::string_view key, std::string_view value);
  GgufWriter& strings(std::string_view key,
                      const std::vector<std::string>& values);
  GgufWriter& floats(std::string_view key, const std::vector<float>& values);
  GgufWriter& i32s(std::string_view key, const std::vector<int32_t>& values);
  // A metadata entry with these bytes as its value.
  GgufWriter& raw(std::string_view key, uint32_t type, std::string_view value);

  // `type`: ggml's number. The data starts at the next multiple of `alignment`.
  GgufWriter& tensor(std::string_view name,
                     std::vector<uint64_t> shape,
                     uint32_t type,
                     std::string data);
  // The same at an offset of the caller's choice; adds no data.
  GgufWriter& tensor_at(std::string_view name,
                        std::vector<uint64_t> shape,
                        uint32_t type,
                        uint64_t offset);

  // Claims other counts than there are.
  GgufWriter& claim(uint64_t tensors, uint64_t entries);
  GgufWriter& alignment(uint64_t bytes);  // of the data; writes no metadata

  std::string bytes() const;

 private:
  uint32_t version_;
  uint64_t alignment_ = 32;
  uint64_t entries_ = 0;
  uint64_t tensors_ = 0;
  bool claimed_ = false;
  uint64_t entries_claimed_ = 0;
  uint64_t tensors_claimed_ = 0;
  std::string metadata_;
  std::string infos_;
  std::string data_;
};

// Little-endian bytes of a number.
template <typename T>
std::string raw_bytes(T value);

// Tensors of a llama of one layer, every one there: 8 columns, 2 heads, 16
// tokens, 24 wide. `prefix`-free Hugging Face names.
std::vector<TestTensor> tiny_llama_tensors();
std::string tiny_llama_config();

// The same shapes as a GGUF file, with a tokenizer of 16 tokens. Its columns
// are 32, so that block formats fit; `type` is the matrices' (0 F32, 8 Q8_0).
GgufWriter tiny_llama_gguf(uint32_t type = 8);

}  // namespace mlx_flash::testing
