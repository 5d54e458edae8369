// SPDX-License-Identifier: MIT
#include "engine/testing/tiny_model.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "base/check.h"
#include "base/json.h"

namespace mlx_flash::testing {
namespace {

// splitmix64, to be the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  float between(float low, float high) {
    return low + (high - low) * static_cast<float>(bits() >> 40) * 0x1p-24f;
  }

 private:
  uint64_t state_;
};

class Writer {
 public:
  explicit Writer(const TinyModel& model)
      : random_(model.seed),
        bf16_vectors_(model.format.kind == WeightKind::kFp8) {}

  void vector(const std::string& name, uint32_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = random_.between(0.5f, 1.5f);
    if (bf16_vectors_) {
      std::vector<uint16_t> halves(n);
      for (uint32_t i = 0; i < n; ++i) {
        halves[i] =
            static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
      }
      return add(name, "BF16", {n}, halves.data(), n * 2);
    }
    add(name, "F32", {n}, values.data(), n * 4);
  }

  // With `stack` a tensor [stack, rows, cols].
  void matrix(const std::string& path,
              uint32_t rows,
              uint32_t cols,
              const WeightFormat& format,
              uint32_t stack = 0) {
    FLASH_CHECK(format_accepts(format, cols));
    stack_ = stack;
    const size_t n = size_t{rows} * cols * std::max(stack, 1u);
    const float range = 3.0f / static_cast<float>(cols);
    if (format.kind == WeightKind::kAffine) {
      affine(path, rows, cols, format);
      return;
    }
    if (format.kind == WeightKind::kFp8) return fp8(path, rows, cols);
    std::vector<std::byte> bytes(n * format.bits / 8);
    for (size_t i = 0; i < n; ++i) {
      const float value = random_.between(-range, range) * 8;
      if (format.kind == WeightKind::kF32) {
        std::memcpy(bytes.data() + i * 4, &value, 4);
      } else if (format.kind == WeightKind::kBF16) {
        uint32_t bits = 0;
        std::memcpy(&bits, &value, 4);
        const auto half = static_cast<uint16_t>(bits >> 16);
        std::memcpy(bytes.data() + i * 2, &half, 2);
      } else {
        const auto half = static_cast<_Float16>(value);
        std::memcpy(bytes.data() + i * 2, &half, 2);
      }
    }
    const char* dtype = format.kind == WeightKind::kF32    ? "F32"
                        : format.kind == WeightKind::kBF16 ? "BF16"
                                                           : "F16";
    add(path + ".weight", dtype, shape(rows, cols), bytes.data(), bytes.size());
  }

  // "<path>_blocks" and "<path>_scales" of gpt_oss.
  void mxfp4_blocks(const std::string& path,
                    uint32_t stack,
                    uint32_t rows,
                    uint32_t cols) {
    const uint32_t groups = cols / 32;
    std::vector<uint8_t> codes(size_t{stack} * rows * cols / 2);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_.bits());
    std::vector<uint8_t> scales(size_t{stack} * rows * groups);
    for (uint8_t& scale : scales) {
      scale = static_cast<uint8_t>(120 + random_.bits() % 3);
    }
    add(path + "_blocks",
        "U8",
        {stack, rows, groups, 16},
        codes.data(),
        codes.size());
    add(path + "_scales",
        "U8",
        {stack, rows, groups},
        scales.data(),
        scales.size());
  }

  void save(const std::string& path) const {
    std::string header = header_.dump();
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const uint64_t length = header.size();
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << header << data_;
  }

 private:
  void fp8(const std::string& path, uint32_t rows, uint32_t cols) {
    FLASH_CHECK(stack_ == 0);
    std::vector<uint8_t> codes(size_t{rows} * cols);
    for (uint8_t& code : codes) {
      code = static_cast<uint8_t>(random_.bits());
      if (code % 128 == 127) code ^= 1;  // no NaN
    }
    const auto blocks = [](uint32_t n) { return (n + 127) / 128; };
    std::vector<float> scales(size_t{blocks(rows)} * blocks(cols));
    for (float& scale : scales) {
      scale = random_.between(0.5f, 1.5f) / static_cast<float>(cols) / 8;
    }
    add(path + ".weight", "F8_E4M3", {rows, cols}, codes.data(), codes.size());
    add(path + ".weight_scale_inv",
        "F32",
        {blocks(rows), blocks(cols)},
        scales.data(),
        scales.size() * 4);
  }

  void affine(const std::string& path,
              uint32_t rows,
              uint32_t cols,
              const WeightFormat& format) {
    const uint32_t words = cols * format.bits / 32;
    const size_t all_rows = size_t{rows} * std::max(stack_, 1u);
    std::vector<uint32_t> packed(all_rows * words);
    for (uint32_t& word : packed) word = static_cast<uint32_t>(random_.bits());
    const uint32_t groups = cols / format.group_size;
    std::vector<float> scales(all_rows * groups);
    std::vector<float> biases(scales.size());
    for (size_t i = 0; i < scales.size(); ++i) {
      scales[i] = random_.between(0.5f, 1.5f) / static_cast<float>(cols);
      biases[i] = -scales[i] * 7.5f;
    }
    add(path + ".weight",
        "U32",
        shape(rows, words),
        packed.data(),
        packed.size() * 4);
    add(path + ".scales",
        "F32",
        shape(rows, groups),
        scales.data(),
        scales.size() * 4);
    add(path + ".biases",
        "F32",
        shape(rows, groups),
        biases.data(),
        biases.size() * 4);
  }

  std::vector<uint32_t> shape(uint32_t rows, uint32_t cols) const {
    if (stack_ == 0) return {rows, cols};
    return {stack_, rows, cols};
  }

  void add(const std::string& name,
           const char* dtype,
           std::vector<uint32_t> shape,
           const void* bytes,
           size_t n) {
    header_[name] = {{"dtype", dtype},
                     {"shape", shape},
                     {"data_offsets", {data_.size(), data_.size() + n}}};
    data_.append(static_cast<const char*>(bytes), n);
  }

  Random random_;
  bool bf16_vectors_;
  uint32_t stack_ = 0;  // of the matrix being written
  Json header_ = Json::object();
  std::string data_;
};

}  // namespace

Json tiny_config(const TinyModel& model) {
  Json config = {{"model_type", "llama"},
                 {"hidden_size", model.hidden_size},
                 {"num_hidden_layers", model.num_hidden_layers},
                 {"intermediate_size", model.intermediate_size},
                 {"num_attention_heads", model.num_attention_heads},
                 {"num_key_value_heads", model.num_key_value_heads},
                 {"head_dim", model.head_dim},
                 {"vocab_size", model.vocab_size},
                 {"max_position_embeddings", model.max_position_embeddings},
                 {"rms_norm_eps", 3e-5},
                 {"rope_theta", 5000.0},
                 {"tie_word_embeddings", model.tie_word_embeddings}};
  if (model.sliding_window != 0) {
    config["sliding_window"] = model.sliding_window;
    for (uint32_t i = 0; i < model.num_hidden_layers; ++i) {
      config["layer_types"].push_back(i % 2 == 0 ? "full_attention"
                                                 : "sliding_attention");
    }
  }
  if (model.num_experts != 0) {
    config["model_type"] = "qwen3_moe";
    config["num_experts"] = model.num_experts;
    config["num_experts_per_tok"] = model.num_experts_per_tok;
    config["moe_intermediate_size"] = model.moe_intermediate_size;
    config["norm_topk_prob"] = true;
    config["decoder_sparse_step"] = 1;
    config["mlp_only_layers"] = Json::array();
  }
  if (model.kv_lora_rank != 0) {
    config["model_type"] = model.latent_v2 ? "deepseek_v2" : "deepseek_v3";
    config["kv_lora_rank"] = model.kv_lora_rank;
    config["q_lora_rank"] = nullptr;
    if (model.q_lora_rank != 0) config["q_lora_rank"] = model.q_lora_rank;
    config["qk_rope_head_dim"] = model.qk_rope_head_dim;
    config["qk_nope_head_dim"] = model.head_dim;
    config["v_head_dim"] = model.head_dim;
    // Lengths and sizes of what is rotated are not those of llama.
    config["rope_scaling"] = {{"type", "yarn"},
                              {"factor", 4.0},
                              {"mscale", 1.0},
                              {"mscale_all_dim", 0.7},
                              {"original_max_position_embeddings", 256}};
  }
  if (model.kv_lora_rank != 0 && model.num_experts != 0) {
    config["n_routed_experts"] = model.num_experts;
    config["n_shared_experts"] = 1;
    config["first_k_dense_replace"] = 0;
  }
  if (model.format.kind == WeightKind::kFp8) {
    config["quantization_config"] = {{"quant_method", "fp8"},
                                     {"fmt", "e4m3"},
                                     {"activation_scheme", "dynamic"},
                                     {"weight_block_size", {128, 128}}};
  }
  if (model.format.kind == WeightKind::kAffine) {
    config["quantization"] = {{"group_size", model.format.group_size},
                              {"bits", model.format.bits}};
  }
  return config;
}

namespace {

// Widths that are not whole groups are kept dense.
WeightFormat fitting(const TinyModel& model, uint32_t cols) {
  return format_accepts(model.format, cols) ? model.format
                                            : dense_format(DType::kF32);
}

// Of embedding and head.
WeightFormat outer_format(const TinyModel& model) {
  return model.format.kind == WeightKind::kFp8 ? dense_format(DType::kBF16)
                                               : model.format;
}

// The experts of a deepseek_v3, each by itself.
void write_latent_experts(const TinyModel& model,
                          const std::string& mlp,
                          Writer& out) {
  const uint32_t hidden = model.hidden_size;
  const uint32_t inner = model.moe_intermediate_size;
  out.vector(mlp + "gate.e_score_correction_bias", model.num_experts);
  for (uint32_t e = 0; e <= model.num_experts; ++e) {
    const std::string path = e < model.num_experts
                                 ? fmt::format("{}experts.{}.", mlp, e)
                                 : mlp + "shared_experts.";
    out.matrix(path + "gate_proj", inner, hidden, model.format);
    out.matrix(path + "up_proj", inner, hidden, model.format);
    out.matrix(path + "down_proj", hidden, inner, fitting(model, inner));
  }
}

void write_mlp(const TinyModel& model, const std::string& base, Writer& out) {
  const bool experts = model.num_experts != 0;
  const uint32_t hidden = model.hidden_size;
  const uint32_t inner =
      experts ? model.moe_intermediate_size : model.intermediate_size;
  const std::string path = base + (experts ? "mlp.switch_mlp." : "mlp.");
  if (experts) {
    out.matrix(base + "mlp.gate",
               model.num_experts,
               hidden,
               dense_format(DType::kF32));
  }
  if (experts && model.kv_lora_rank != 0) {
    return write_latent_experts(model, base + "mlp.", out);
  }
  const uint32_t stack = model.num_experts;
  if (model.experts_in_turns) {
    const std::string own = base + "mlp.experts.";
    out.mxfp4_blocks(own + "gate_up_proj", stack, 2 * inner, hidden);
    out.mxfp4_blocks(own + "down_proj", stack, hidden, inner);
    return;
  }
  out.matrix(path + "gate_proj", inner, hidden, model.format, stack);
  out.matrix(path + "up_proj", inner, hidden, model.format, stack);
  out.matrix(path + "down_proj", hidden, inner, fitting(model, inner), stack);
}

// Returns the width of what the output projection reads.
uint32_t write_attention(const TinyModel& model,
                         const std::string& base,
                         Writer& out) {
  const uint32_t hidden = model.hidden_size;
  const uint32_t heads = model.num_attention_heads;
  const uint32_t q = heads * model.head_dim;
  const uint32_t kv = model.num_key_value_heads * model.head_dim;
  if (model.kv_lora_rank == 0) {
    if (model.num_experts != 0) {
      out.vector(base + "q_norm.weight", model.head_dim);
      out.vector(base + "k_norm.weight", model.head_dim);
    }
    out.matrix(base + "q_proj", q, hidden, model.format);
    out.matrix(base + "k_proj", kv, hidden, model.format);
    out.matrix(base + "v_proj", kv, hidden, model.format);
    return q;
  }
  const uint32_t rows = heads * (model.head_dim + model.qk_rope_head_dim);
  const uint32_t latent = model.kv_lora_rank;
  if (const uint32_t rank = model.q_lora_rank; rank != 0) {
    out.matrix(base + "q_a_proj", rank, hidden, model.format);
    out.vector(base + "q_a_layernorm.weight", rank);
    out.matrix(base + "q_b_proj", rows, rank, fitting(model, rank));
  } else {
    out.matrix(base + "q_proj", rows, hidden, model.format);
  }
  out.matrix(base + "kv_a_proj_with_mqa",
             latent + model.qk_rope_head_dim,
             hidden,
             model.format);
  out.vector(base + "kv_a_layernorm.weight", latent);
  out.matrix(base + "kv_b_proj", 2 * q, latent, fitting(model, latent));
  return q;
}

}  // namespace

Status write_tiny_model(const TinyModel& model, const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::ofstream(folder + "/config.json") << tiny_config(model).dump(1);

  Writer out(model);
  const uint32_t hidden = model.hidden_size;
  out.matrix(
      "model.embed_tokens", model.vocab_size, hidden, outer_format(model));
  for (uint32_t i = 0; i < model.num_hidden_layers; ++i) {
    const std::string base = fmt::format("model.layers.{}.", i);
    out.vector(base + "input_layernorm.weight", hidden);
    out.vector(base + "post_attention_layernorm.weight", hidden);
    const std::string attention = base + "self_attn.";
    const uint32_t q = write_attention(model, attention, out);
    out.matrix(attention + "o_proj", hidden, q, fitting(model, q));
    write_mlp(model, base, out);
  }
  out.vector("model.norm.weight", hidden);
  if (!model.tie_word_embeddings) {
    out.matrix("lm_head", model.vocab_size, hidden, outer_format(model));
  }
  out.save(folder + "/model.safetensors");
  if (!std::filesystem::exists(folder + "/model.safetensors", error)) {
    return io_error(folder + ": could not write the model");
  }
  return Status();
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern =
      (std::filesystem::temp_directory_path() / "mlx-flash-test-XXXXXX")
          .string();
  FLASH_CHECK(mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

}  // namespace mlx_flash::testing
