// SPDX-License-Identifier: MIT
#include "engine/testing/tiny_gguf.h"

#include <fmt/format.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "checkpoint/gguf_types.h"
#include "checkpoint/testing/model_files.h"
#include "kernels/dequantize.h"

namespace mlx_flash::testing {
namespace {

uint32_t type_of(WeightKind kind) {
  for (uint32_t id = 0; id < 64; ++id) {
    const GgmlType* type = find_ggml_type(id);
    if (type != nullptr && type->kind == kind) return id;
  }
  FLASH_CHECK(!"a type of GGUF");
  return 0;
}

class Twins {
 public:
  explicit Twins(const TinyModel& model) : model_(model), random_(model.seed) {}

  void write_header() {
    const std::string p = "qwen3moe.";
    gguf_.string("general.architecture", "qwen3moe")
        .u32(p + "block_count", model_.num_hidden_layers)
        .u32(p + "context_length", model_.max_position_embeddings)
        .u32(p + "embedding_length", model_.hidden_size)
        .u32(p + "feed_forward_length", model_.intermediate_size)
        .u32(p + "attention.head_count", model_.num_attention_heads)
        .u32(p + "attention.head_count_kv", model_.num_key_value_heads)
        .u32(p + "attention.key_length", model_.head_dim)
        .u32(p + "attention.value_length", model_.head_dim)
        .f32(p + "attention.layer_norm_rms_epsilon", 3e-5f)
        .f32(p + "rope.freq_base", 5000.0f)
        .u32(p + "expert_count", model_.num_experts)
        .u32(p + "expert_used_count", model_.num_experts_per_tok)
        .u32(p + "expert_feed_forward_length", model_.moe_intermediate_size);
  }

  void vector(const std::string& gguf, const std::string& name, uint32_t n) {
    std::string bytes;
    for (uint32_t i = 0; i < n; ++i) bytes += raw_bytes(between(0.5f, 1.5f));
    gguf_.tensor(gguf + ".weight", {n}, 0, bytes);
    twin_.push_back({name + ".weight", "F32", {n}, bytes});
  }

  void matrix(const std::string& gguf,
              const std::string& name,
              uint32_t rows,
              uint32_t cols) {
    const Values values = add_blocks(gguf, WeightKind::kQ8_0, {rows, cols});
    twin_.push_back({name + ".weight", "F32", {rows, cols}, values.part(0, 1)});
  }

  // All experts of a projection: one stacked tensor, in the twin one each, so
  // that what finds one expert in a stack has nothing in common with it.
  void experts(const std::string& gguf,
               const std::string& mlp,
               const char* projection,
               uint32_t rows,
               uint32_t cols,
               WeightKind kind) {
    const uint32_t count = model_.num_experts;
    const Values values = add_blocks(gguf, kind, {count, rows, cols});
    for (uint32_t e = 0; e < count; ++e) {
      twin_.push_back(
          {fmt::format("{}experts.{}.{}.weight", mlp, e, projection),
           "F32",
           {rows, cols},
           values.part(e, count)});
    }
  }

  Status save(const std::string& folder) const {
    const std::string twin = folder + "/twin";
    std::error_code error;
    std::filesystem::create_directories(twin, error);
    std::ofstream(twin + "/config.json") << tiny_config(model_).dump(1);
    std::ofstream(twin + "/model.safetensors", std::ios::binary)
        << safetensors_bytes(twin_);
    std::ofstream out(folder + "/model.gguf", std::ios::binary);
    out << gguf_.bytes();
    out.close();
    if (out.good()) return Status();
    return io_error(folder + ": could not write the model");
  }

 private:
  struct Values {
    std::vector<float> values;
    // The bytes of part `index` of `count` equal ones.
    std::string part(size_t index, size_t count) const {
      const size_t n = values.size() / count;
      return {reinterpret_cast<const char*>(values.data() + index * n),
              n * sizeof(float)};
    }
  };

  // A tensor of random blocks; returns what they stand for.
  Values add_blocks(const std::string& gguf,
                    WeightKind kind,
                    std::vector<uint64_t> shape) {
    const uint64_t cols = shape.back();
    size_t rows = 1;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    const WeightFormat format = block_format(kind);
    const size_t row = row_bytes(format, cols).weight;
    std::string bytes(rows * row, '\0');
    const size_t block = row / (cols / format.group_size);
    for (size_t at = 0; at < bytes.size(); at += block) {
      fill_block(kind, 0.2f / static_cast<float>(cols), block, &bytes[at]);
    }
    Values out{std::vector<float>(rows * cols)};
    const kernels::WeightRows weights = {
        .format = format,
        .rows = rows,
        .cols = cols,
        .weight = reinterpret_cast<const std::byte*>(bytes.data())};
    for (size_t r = 0; r < rows; ++r) {
      kernels::dequantize_row(weights, r, out.values.data() + r * cols);
    }
    gguf_.tensor(
        gguf + ".weight", std::move(shape), type_of(kind), std::move(bytes));
    return out;
  }

  float between(float low, float high) {
    return low + (high - low) * static_cast<float>(random_() >> 40) * 0x1p-24f;
  }

  void put_half(char* to, float value) {
    const auto half = static_cast<_Float16>(value);
    std::memcpy(to, &half, 2);
  }

  // Random codes, and factors that make weights of about `size` * 127.
  void fill_block(WeightKind kind, float size, size_t bytes, char* block) {
    for (size_t i = 0; i < bytes; ++i) block[i] = static_cast<char>(random_());
    const float d = size * between(0.5f, 1.5f);
    switch (kind) {
      case WeightKind::kQ8_0:
        return put_half(block, d);
      case WeightKind::kQ6_K:
        return put_half(block + 208, d / 16);
      case WeightKind::kQ4_K:
        put_half(block, d / 4);
        return put_half(block + 2, d / 4 * 7.5f);
      default:
        FLASH_CHECK(!"a format of this writer");
    }
  }

  TinyModel model_;
  std::mt19937_64 random_;
  GgufWriter gguf_;
  std::vector<TestTensor> twin_;
};

void write_layer(const TinyModel& model, uint32_t index, Twins& out) {
  const std::string blk = fmt::format("blk.{}.", index);
  const std::string base = fmt::format("model.layers.{}.", index);
  const std::string attention = base + "self_attn.";
  const std::string mlp = base + "mlp.";
  const uint32_t hidden = model.hidden_size;
  const uint32_t inner = model.moe_intermediate_size;
  const uint32_t q = model.num_attention_heads * model.head_dim;
  const uint32_t kv = model.num_key_value_heads * model.head_dim;
  out.vector(blk + "attn_norm", base + "input_layernorm", hidden);
  out.matrix(blk + "attn_q", attention + "q_proj", q, hidden);
  out.matrix(blk + "attn_k", attention + "k_proj", kv, hidden);
  out.matrix(blk + "attn_v", attention + "v_proj", kv, hidden);
  out.vector(blk + "attn_q_norm", attention + "q_norm", model.head_dim);
  out.vector(blk + "attn_k_norm", attention + "k_norm", model.head_dim);
  out.matrix(blk + "attn_output", attention + "o_proj", hidden, q);
  out.vector(blk + "ffn_norm", base + "post_attention_layernorm", hidden);
  out.matrix(blk + "ffn_gate_inp", mlp + "gate", model.num_experts, hidden);
  const auto projection = [&](const char* exps,
                              const char* name,
                              uint32_t rows,
                              uint32_t cols,
                              WeightKind kind) {
    out.experts(blk + exps, mlp, name, rows, cols, kind);
  };
  projection("ffn_gate_exps", "gate_proj", inner, hidden, WeightKind::kQ4_K);
  projection("ffn_up_exps", "up_proj", inner, hidden, WeightKind::kQ6_K);
  projection("ffn_down_exps", "down_proj", hidden, inner, WeightKind::kQ8_0);
}

}  // namespace

TinyModel tiny_gguf_model(uint32_t experts) {
  TinyModel model;
  model.hidden_size = 256;
  model.head_dim = 32;
  model.num_experts = experts;
  return model;
}

Status write_tiny_gguf(const TinyModel& model, const std::string& folder) {
  Twins out(model);
  out.write_header();
  const uint32_t hidden = model.hidden_size;
  out.matrix("token_embd", "model.embed_tokens", model.vocab_size, hidden);
  for (uint32_t i = 0; i < model.num_hidden_layers; ++i) {
    write_layer(model, i, out);
  }
  out.vector("output_norm", "model.norm", hidden);
  out.matrix("output", "lm_head", model.vocab_size, hidden);
  return out.save(folder);
}

}  // namespace mlx_flash::testing
