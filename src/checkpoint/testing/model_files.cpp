// SPDX-License-Identifier: MIT
#include "checkpoint/testing/model_files.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "checkpoint/gguf_types.h"

namespace mlx_flash::testing {
namespace {

std::string gguf_text(std::string_view text) {
  return raw_bytes<uint64_t>(text.size()) + std::string(text);
}

uint64_t product(const std::vector<uint64_t>& shape) {
  uint64_t count = 1;
  for (const uint64_t dimension : shape) count *= dimension;
  return count;
}

uint64_t bytes_of(std::string_view dtype) {
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "U32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16") return 2;
  return 1;
}

void pad(std::string& bytes, uint64_t alignment) {
  while (bytes.size() % alignment != 0) bytes += '\0';
}

}  // namespace

TempFolder::TempFolder() {
  std::string name =
      (std::filesystem::temp_directory_path() / "mlx_flash_XXXXXX").string();
  FLASH_CHECK(::mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TempFolder::~TempFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string TempFolder::write(const std::string& name,
                              std::string_view bytes) const {
  const std::string path = path_ + "/" + name;
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  FLASH_CHECK(out.good());
  return path;
}

std::string safetensors_with_header(std::string_view header,
                                    std::string_view data) {
  std::string bytes = raw_bytes<uint64_t>(header.size());
  bytes += header;
  bytes += data;
  return bytes;
}

std::string safetensors_bytes(const std::vector<TestTensor>& tensors) {
  std::string header = R"({"__metadata__":{"format":"mlx"})";
  std::string data;
  for (const TestTensor& tensor : tensors) {
    header += fmt::format(
        R"(,"{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
        tensor.name,
        tensor.dtype,
        fmt::join(tensor.shape, ","),
        data.size(),
        data.size() + tensor.data.size());
    data += tensor.data;
  }
  header += "}";
  while (header.size() % 8 != 0) header += ' ';
  return safetensors_with_header(header, data);
}

TestTensor zeros(std::string name,
                 std::string dtype,
                 std::vector<uint64_t> shape) {
  const uint64_t bytes = product(shape) * bytes_of(dtype);
  return {std::move(name),
          std::move(dtype),
          std::move(shape),
          std::string(bytes, '\0')};
}

template <typename T>
std::string raw_bytes(T value) {
  const auto* begin = reinterpret_cast<const char*>(&value);
  return std::string(begin, sizeof(T));
}
template std::string raw_bytes(uint8_t);
template std::string raw_bytes(uint16_t);
template std::string raw_bytes(uint32_t);
template std::string raw_bytes(uint64_t);
template std::string raw_bytes(int32_t);
template std::string raw_bytes(int64_t);
template std::string raw_bytes(float);
template std::string raw_bytes(double);

GgufWriter& GgufWriter::raw(std::string_view key,
                            uint32_t type,
                            std::string_view value) {
  metadata_ += gguf_text(key) + raw_bytes(type);
  metadata_ += value;
  ++entries_;
  return *this;
}

GgufWriter& GgufWriter::u32(std::string_view key, uint32_t value) {
  return raw(key, 4, raw_bytes(value));
}
GgufWriter& GgufWriter::i32(std::string_view key, int32_t value) {
  return raw(key, 5, raw_bytes(value));
}
GgufWriter& GgufWriter::f32(std::string_view key, float value) {
  return raw(key, 6, raw_bytes(value));
}
GgufWriter& GgufWriter::boolean(std::string_view key, bool value) {
  return raw(key, 7, raw_bytes<uint8_t>(value ? 1 : 0));
}
GgufWriter& GgufWriter::string(std::string_view key, std::string_view value) {
  return raw(key, 8, gguf_text(value));
}
GgufWriter& GgufWriter::u64(std::string_view key, uint64_t value) {
  return raw(key, 10, raw_bytes(value));
}

GgufWriter& GgufWriter::strings(std::string_view key,
                                const std::vector<std::string>& values) {
  std::string bytes =
      raw_bytes<uint32_t>(8) + raw_bytes<uint64_t>(values.size());
  for (const std::string& value : values) bytes += gguf_text(value);
  return raw(key, 9, bytes);
}

GgufWriter& GgufWriter::floats(std::string_view key,
                               const std::vector<float>& values) {
  std::string bytes =
      raw_bytes<uint32_t>(6) + raw_bytes<uint64_t>(values.size());
  for (const float value : values) bytes += raw_bytes(value);
  return raw(key, 9, bytes);
}

GgufWriter& GgufWriter::i32s(std::string_view key,
                             const std::vector<int32_t>& values) {
  std::string bytes =
      raw_bytes<uint32_t>(5) + raw_bytes<uint64_t>(values.size());
  for (const int32_t value : values) bytes += raw_bytes(value);
  return raw(key, 9, bytes);
}

GgufWriter& GgufWriter::tensor_at(std::string_view name,
                                  std::vector<uint64_t> shape,
                                  uint32_t type,
                                  uint64_t offset) {
  infos_ += gguf_text(name);
  infos_ += raw_bytes(static_cast<uint32_t>(shape.size()));
  for (auto it = shape.rbegin(); it != shape.rend(); ++it) {
    infos_ += raw_bytes(*it);
  }
  infos_ += raw_bytes(type) + raw_bytes(offset);
  ++tensors_;
  return *this;
}

GgufWriter& GgufWriter::tensor(std::string_view name,
                               std::vector<uint64_t> shape,
                               uint32_t type,
                               std::string data) {
  pad(data_, alignment_);
  tensor_at(name, std::move(shape), type, data_.size());
  data_ += data;
  return *this;
}

GgufWriter& GgufWriter::claim(uint64_t tensors, uint64_t entries) {
  claimed_ = true;
  tensors_claimed_ = tensors;
  entries_claimed_ = entries;
  return *this;
}

GgufWriter& GgufWriter::alignment(uint64_t bytes) {
  alignment_ = bytes;
  return *this;
}

std::string GgufWriter::bytes() const {
  std::string bytes = "GGUF" + raw_bytes(version_) +
                      raw_bytes(claimed_ ? tensors_claimed_ : tensors_) +
                      raw_bytes(claimed_ ? entries_claimed_ : entries_) +
                      metadata_ + infos_;
  pad(bytes, alignment_);
  return bytes + data_;
}

std::vector<TestTensor> tiny_llama_tensors() {
  const std::string layer = "model.layers.0.";
  return {
      zeros("model.embed_tokens.weight", "F32", {16, 8}),
      zeros(layer + "input_layernorm.weight", "F32", {8}),
      zeros(layer + "self_attn.q_proj.weight", "F32", {8, 8}),
      zeros(layer + "self_attn.k_proj.weight", "F32", {4, 8}),
      zeros(layer + "self_attn.v_proj.weight", "F32", {4, 8}),
      zeros(layer + "self_attn.o_proj.weight", "F32", {8, 8}),
      zeros(layer + "post_attention_layernorm.weight", "F32", {8}),
      zeros(layer + "mlp.gate_proj.weight", "F32", {24, 8}),
      zeros(layer + "mlp.up_proj.weight", "F32", {24, 8}),
      zeros(layer + "mlp.down_proj.weight", "F32", {8, 24}),
      zeros("model.norm.weight", "F32", {8}),
  };
}

std::string tiny_llama_config() {
  return R"({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
  "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1,
  "rms_norm_eps": 1e-05, "vocab_size": 16, "rope_theta": 10000.0,
  "tie_word_embeddings": true})";
}

GgufWriter tiny_llama_gguf(uint32_t type) {
  GgufWriter writer;
  writer.string("general.architecture", "llama")
      .u32("llama.block_count", 1)
      .u32("llama.context_length", 128)
      .u32("llama.embedding_length", 32)
      .u32("llama.feed_forward_length", 64)
      .u32("llama.attention.head_count", 4)
      .u32("llama.attention.head_count_kv", 2)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5F)
      .string("tokenizer.ggml.model", "gpt2")
      .string("tokenizer.ggml.pre", "smollm");
  std::vector<std::string> tokens;
  for (int i = 0; i < 16; ++i) tokens.push_back(fmt::format("t{}", i));
  writer.strings("tokenizer.ggml.tokens", tokens)
      .i32s("tokenizer.ggml.token_type", std::vector<int32_t>(16, 1))
      .strings("tokenizer.ggml.merges", {"t 0", "t 1"})
      .u32("tokenizer.ggml.bos_token_id", 1)
      .u32("tokenizer.ggml.eos_token_id", 2);
  const GgmlType* format = find_ggml_type(type);
  FLASH_CHECK(format != nullptr);
  const auto matrix = [&](const char* name, uint64_t rows, uint64_t cols) {
    const uint64_t bytes =
        rows * cols / format->block_values * format->block_bytes;
    writer.tensor(name, {rows, cols}, type, std::string(bytes, '\0'));
  };
  const auto vector = [&](const char* name) {
    writer.tensor(name, {32}, 0, std::string(128, '\0'));
  };
  matrix("token_embd.weight", 16, 32);
  vector("blk.0.attn_norm.weight");
  matrix("blk.0.attn_q.weight", 32, 32);
  matrix("blk.0.attn_k.weight", 16, 32);
  matrix("blk.0.attn_v.weight", 16, 32);
  matrix("blk.0.attn_output.weight", 32, 32);
  vector("blk.0.ffn_norm.weight");
  matrix("blk.0.ffn_gate.weight", 64, 32);
  matrix("blk.0.ffn_up.weight", 64, 32);
  matrix("blk.0.ffn_down.weight", 32, 64);
  vector("output_norm.weight");
  return writer;
}

}  // namespace mlx_flash::testing
