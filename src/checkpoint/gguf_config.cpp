// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <span>

#include "base/check.h"
#include "base/quote.h"
#include "checkpoint/gguf_names.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kLayersMax = 4096;  // elements of per-layer arrays
constexpr uint64_t kRopeFactorsMax = 1024;

struct KeyRow {
  std::string_view gguf;  // behind "<architecture>."
  std::string_view config;
};

constexpr KeyRow kKeys[] = {
    {"vocab_size", "vocab_size"},
    {"embedding_length", "hidden_size"},
    {"block_count", "num_hidden_layers"},
    {"feed_forward_length", "intermediate_size"},
    {"attention.head_count", "num_attention_heads"},
    {"attention.head_count_kv", "num_key_value_heads"},
    {"attention.key_length", "head_dim"},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
    {"attention.layer_norm_epsilon", "layer_norm_eps"},
    {"attention.sliding_window", "sliding_window"},
    {"rope.freq_base", "rope_theta"},
    {"context_length", "max_position_embeddings"},
    {"expert_count", "num_experts"},
    {"expert_used_count", "num_experts_per_tok"},
    {"expert_feed_forward_length", "moe_intermediate_size"},
    {"expert_shared_feed_forward_length", "shared_expert_intermediate_size"},
    {"expert_shared_count", "n_shared_experts"},
    {"expert_weights_scale", "routed_scaling_factor"},
    {"expert_group_count", "n_group"},
    {"expert_group_used_count", "topk_group"},
    {"leading_dense_block_count", "first_k_dense_replace"},
    {"attention.q_lora_rank", "q_lora_rank"},
    {"attention.kv_lora_rank", "kv_lora_rank"},
    {"attention.scale", "attention_multiplier"},
    {"embedding_scale", "embedding_multiplier"},
    {"residual_scale", "residual_multiplier"},
    {"logit_scale", "logits_scaling"},
};

constexpr KeyRow kRopeScalingKeys[] = {
    {"rope.scaling.factor", "factor"},
    {"rope.scaling.original_context_length",
     "original_max_position_embeddings"},
    {"rope.scaling.attn_factor", "attention_factor"},
    {"rope.scaling.yarn_beta_fast", "beta_fast"},
    {"rope.scaling.yarn_beta_slow", "beta_slow"},
};

// Architectures whose q and k rows lie in the order of interleaved rope
// (llama.cpp's LLAMA_ROPE_TYPE_NORM).
constexpr std::string_view kInterleaved[] = {
    "llama",      "llama4",    "mistral3",  "deci",      "granite",
    "granitemoe", "smollm3",   "arcee",     "command-r", "cohere2",
    "glm4",       "olmo",      "internlm2", "minicpm",   "xverse",
    "deepseek",   "deepseek2", "ernie4_5",  "chatglm",   "baichuan",
};

// The shortest decimal that is this float32: 1e-05, not 9.99999975e-06, which
// is what the model's own config.json says.
double shortest(double value) {
  const std::string text = fmt::format("{}", static_cast<float>(value));
  return std::strtod(text.c_str(), nullptr);
}

Json integer_json(int64_t value) {
  return value < 0 ? Json(value) : Json(static_cast<uint64_t>(value));
}

Result<Json> scalar_json(const GgufFile& file, const GgufMetadata& entry) {
  if (const auto* flag = std::get_if<bool>(&entry.scalar)) return Json(*flag);
  if (const auto* n = std::get_if<uint64_t>(&entry.scalar)) return Json(*n);
  if (const auto* n = std::get_if<int64_t>(&entry.scalar))
    return integer_json(*n);
  const auto* value = std::get_if<double>(&entry.scalar);
  if (value == nullptr || !std::isfinite(*value)) {
    return invalid_input(fmt::format("{}: metadata {} is not a finite number",
                                     file.name(),
                                     quote(entry.key)));
  }
  return Json(entry.type == GgufType::kF32 ? shortest(*value) : *value);
}

// Numbers stay numbers; a list (one value for each layer) becomes one number if
// all are equal, as config.json has it, else a list.
Result<Json> number_json(const GgufFile& file, const GgufMetadata& entry) {
  if (entry.type != GgufType::kArray) return scalar_json(file, entry);
  if (entry.count == 0 || entry.count > kLayersMax) {
    return invalid_input(fmt::format("{}: metadata {} has {} elements",
                                     file.name(),
                                     quote(entry.key),
                                     entry.count));
  }
  FLASH_ASSIGN_OR_RETURN(const auto values, file.integers(entry.key));
  const bool equal =
      std::all_of(values.begin(), values.end(), [&](int64_t value) {
        return value == values.front();
      });
  if (equal) return integer_json(values.front());
  Json list = Json::array();
  for (const int64_t value : values) list.push_back(integer_json(value));
  return list;
}

template <size_t N>
Status copy_keys(const GgufFile& file,
                 const std::string& prefix,
                 const KeyRow (&rows)[N],
                 Json& out) {
  for (const KeyRow& row : rows) {
    const GgufMetadata* entry =
        file.find(fmt::format("{}{}", prefix, row.gguf));
    if (entry == nullptr) continue;
    FLASH_ASSIGN_OR_RETURN(out[std::string(row.config)],
                           number_json(file, *entry));
  }
  return {};
}

struct Found {
  const GgufFile* file = nullptr;
  const GgufTensor* tensor = nullptr;  // null: in no file
};

Found find_tensor(std::span<const GgufFile> files, std::string_view name) {
  for (const GgufFile& file : files) {
    for (const GgufTensor& tensor : file.tensors()) {
      if (tensor.name == name) return {&file, &tensor};
    }
  }
  return {};
}

bool has_tensor(std::span<const GgufFile> files, std::string_view name) {
  return find_tensor(files, name).tensor != nullptr;
}

// Divisors of the rotation speeds that llama3 parameters stand for.
// Source: transformers modeling_rope_utils, _compute_llama3_parameters.
std::vector<double> llama3_factors(size_t count,
                                   double theta,
                                   double factor,
                                   double original) {
  constexpr double kLow = 1.0;
  constexpr double kHigh = 4.0;
  std::vector<double> factors(count);
  for (size_t i = 0; i < count; ++i) {
    const double exponent = static_cast<double>(i) / static_cast<double>(count);
    const double wavelength = 2 * M_PI * std::pow(theta, exponent);
    if (wavelength < original / kHigh) {
      factors[i] = 1;
    } else if (wavelength > original / kLow) {
      factors[i] = factor;
    } else {
      const double smooth = (original / wavelength - kLow) / (kHigh - kLow);
      factors[i] = 1 / ((1 - smooth) / factor + smooth);
    }
  }
  return factors;
}

// rope_freqs.weight of a GGUF made from a llama 3 model. The parameters are not
// in the metadata; Meta's are (1, 4, 8192), which the factors confirm or not.
Result<Json> rope_factors(const GgufFile& file,
                          const GgufTensor& tensor,
                          double theta) {
  const uint64_t count = tensor.shape.back();
  if (tensor.dtype != DType::kF32 || tensor.shape.size() != 1 ||
      count > kRopeFactorsMax) {
    return invalid_input(
        fmt::format("{}: tensor {} is not a short list of float32",
                    file.name(),
                    quote(tensor.name)));
  }
  std::vector<float> values(static_cast<size_t>(count));
  FLASH_RETURN_IF_ERROR(
      file.read(tensor.offset, std::as_writable_bytes(std::span(values))));
  for (const float value : values) {
    if (!std::isfinite(value) || value <= 0) {
      return invalid_input(
          fmt::format("{}: tensor {} holds a factor that is "
                      "not positive and finite",
                      file.name(),
                      quote(tensor.name)));
    }
  }
  const double factor = shortest(values.back());
  Json scaling = Json::object();
  for (const double original : {8192.0, 4096.0, 16384.0, 32768.0}) {
    const auto expected =
        llama3_factors(values.size(), theta, factor, original);
    const bool equal = std::equal(
        values.begin(), values.end(), expected.begin(), [](float a, double b) {
          return std::abs(a - b) <= 1e-4 * b;
        });
    if (!equal) continue;
    scaling["rope_type"] = "llama3";
    scaling["factor"] = factor;
    scaling["low_freq_factor"] = 1.0;
    scaling["high_freq_factor"] = 4.0;
    scaling["original_max_position_embeddings"] =
        static_cast<uint64_t>(original);
    return scaling;
  }
  scaling["rope_type"] = "freq_factors";
  scaling["freq_factors"] = values;
  return scaling;
}

Status set_rope(std::span<const GgufFile> files,
                const std::string& prefix,
                Json& config) {
  const GgufFile& file = files.front();
  if (!config.contains("rope_theta")) config["rope_theta"] = 10000.0;
  const Found factors = find_tensor(files, "rope_freqs.weight");
  if (factors.tensor != nullptr) {
    if (!config["rope_theta"].is_number()) {
      return invalid_input(
          fmt::format("{}: metadata '{}rope.freq_base' is not a number",
                      file.name(),
                      prefix));
    }
    FLASH_ASSIGN_OR_RETURN(config["rope_scaling"],
                           rope_factors(*factors.file,
                                        *factors.tensor,
                                        config["rope_theta"].get<double>()));
    return {};
  }
  FLASH_ASSIGN_OR_RETURN(auto type, file.string(prefix + "rope.scaling.type"));
  const GgufMetadata* linear = file.find(prefix + "rope.scale_linear");
  if (!type && linear != nullptr) {  // files of 2023
    Json scaling = Json::object();
    scaling["rope_type"] = "linear";
    FLASH_ASSIGN_OR_RETURN(scaling["factor"], scalar_json(file, *linear));
    config["rope_scaling"] = std::move(scaling);
    return {};
  }
  if (!type || *type == "none") return {};
  Json scaling = Json::object();
  scaling["rope_type"] = printable(*type, 40);
  FLASH_RETURN_IF_ERROR(copy_keys(file, prefix, kRopeScalingKeys, scaling));
  config["rope_scaling"] = std::move(scaling);
  return {};
}

// Heads that rotate only in part.
Status set_partial_rotary(const GgufFile& file,
                          const std::string& prefix,
                          Json& config) {
  FLASH_ASSIGN_OR_RETURN(
      const auto rotated,
      file.unsigned_integer(prefix + "rope.dimension_count"));
  const auto number = [&](const char* key) -> uint64_t {
    const auto found = config.find(key);
    return found != config.end() && found->is_number_unsigned()
               ? found->get<uint64_t>()
               : 0;
  };
  uint64_t head_dim = number("head_dim");
  const uint64_t heads = number("num_attention_heads");
  if (head_dim == 0 && heads != 0) head_dim = number("hidden_size") / heads;
  if (!rotated || head_dim == 0 || *rotated == head_dim) return {};
  if (*rotated > head_dim) {
    return invalid_input(fmt::format(
        "{}: metadata '{}rope.dimension_count' is {}, more than the {} of a "
        "head",
        file.name(),
        prefix,
        *rotated,
        head_dim));
  }
  config["partial_rotary_factor"] =
      static_cast<double>(*rotated) / static_cast<double>(head_dim);
  return {};
}

// sliding_window_pattern n: every n-th layer sees everything; a list: true
// where the layer slides.
Status set_layer_types(const GgufFile& file,
                       const std::string& prefix,
                       Json& config) {
  const std::string key = prefix + "attention.sliding_window_pattern";
  const GgufMetadata* entry = file.find(key);
  const auto layers = config.find("num_hidden_layers");
  if (entry == nullptr || layers == config.end() ||
      !layers->is_number_unsigned()) {
    return {};
  }
  const auto count = layers->get<uint64_t>();
  std::vector<int64_t> slides;
  if (entry->type == GgufType::kArray) {
    FLASH_ASSIGN_OR_RETURN(slides, file.integers(key));
  } else if (count <= kLayersMax) {
    FLASH_ASSIGN_OR_RETURN(const auto period, file.unsigned_integer(key));
    for (uint64_t i = 0; i < count; ++i) {
      slides.push_back(*period != 0 && i % *period < *period - 1 ? 1 : 0);
    }
  }
  if (slides.size() != count) {
    return invalid_input(
        fmt::format("{}: metadata {} has {} elements for {} layers",
                    file.name(),
                    quote(key),
                    slides.size(),
                    count));
  }
  Json types = Json::array();
  for (const int64_t slide : slides) {
    types.push_back(slide != 0 ? "sliding_attention" : "full_attention");
  }
  config["layer_types"] = std::move(types);
  return {};
}

Status set_token_ids(const GgufFile& file, uint64_t vocab_size, Json& config) {
  const auto id = [&](const char* key) -> Result<std::optional<uint64_t>> {
    auto value = file.unsigned_integer(key);
    // 2^32 - 1 stands for none.
    if (value.ok() && *value && **value >= vocab_size) {
      return std::optional<uint64_t>();
    }
    return value;
  };
  FLASH_ASSIGN_OR_RETURN(const auto bos, id("tokenizer.ggml.bos_token_id"));
  if (bos) config["bos_token_id"] = *bos;
  std::vector<uint64_t> ends;
  for (const char* key : {"tokenizer.ggml.eos_token_id",
                          "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    FLASH_ASSIGN_OR_RETURN(const auto end, id(key));
    if (end && std::find(ends.begin(), ends.end(), *end) == ends.end()) {
      ends.push_back(*end);
    }
  }
  if (ends.size() == 1) config["eos_token_id"] = ends[0];
  if (ends.size() > 1) config["eos_token_id"] = ends;
  return {};
}

}  // namespace

Result<Json> gguf_config(std::span<const GgufFile> files) {
  FLASH_CHECK(!files.empty());
  const GgufFile& file = files.front();
  Json config = Json::object();
  FLASH_ASSIGN_OR_RETURN(const auto architecture,
                         file.string("general.architecture"));
  if (!architecture || architecture->empty() || architecture->size() > 64) {
    return invalid_input(fmt::format(
        "{}: no general.architecture in the metadata", file.name()));
  }
  config["model_type"] = printable(*architecture);
  const std::string prefix = *architecture + ".";
  FLASH_RETURN_IF_ERROR(copy_keys(file, prefix, kKeys, config));

  uint64_t vocab_size = 0;
  const Found embedding = find_tensor(files, "token_embd.weight");
  if (embedding.tensor != nullptr) {
    vocab_size = embedding.tensor->shape.front();
    config["vocab_size"] = vocab_size;
  } else if (const GgufMetadata* tokens = file.find("tokenizer.ggml.tokens")) {
    vocab_size = tokens->count;
    if (!config.contains("vocab_size")) config["vocab_size"] = vocab_size;
  }
  config["tie_word_embeddings"] = !has_tensor(files, "output.weight");
  config["attention_bias"] = has_tensor(files, "blk.0.attn_q.bias");
  config["mlp_bias"] = has_tensor(files, "blk.0.ffn_up.bias");
  config["rope_traditional"] =
      std::find(std::begin(kInterleaved),
                std::end(kInterleaved),
                *architecture) != std::end(kInterleaved);

  FLASH_RETURN_IF_ERROR(set_rope(files, prefix, config));
  FLASH_RETURN_IF_ERROR(set_partial_rotary(file, prefix, config));
  FLASH_RETURN_IF_ERROR(set_gguf_experts(files, *architecture, config));
  FLASH_RETURN_IF_ERROR(set_layer_types(file, prefix, config));
  FLASH_RETURN_IF_ERROR(set_token_ids(file, vocab_size, config));
  return config;
}

}  // namespace mlx_flash
