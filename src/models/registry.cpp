// SPDX-License-Identifier: MIT
#include "models/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/attention.h"

namespace mlx_flash::models {
namespace {

struct Row {
  const char* model_type;
  Result<DecoderConfig> (*read)(const Json& config);
  // GGUF files of this architecture hold the rows of q and k with rotary
  // pairs side by side.
  bool gguf_interleaved_qk;
};

constexpr Row kRows[] = {
    {"llama", llama_config, true},
    {"mistral", llama_config, true},  // as mlx-lm: the llama model
    {"qwen2", qwen2_config, false},
    {"qwen3", qwen3_config, false},
};

// What no file of ours may exceed, whatever its config claims: sizes are
// multiplied with each other later, and must stay far from overflow.
Status check(const DecoderConfig& config) {
  const auto wrong = [](const std::string& what) {
    return invalid_input("config.json: " + what);
  };
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    return wrong(fmt::format(
        "num_attention_heads ({}) must be a multiple of num_key_value_heads "
        "({})",
        config.num_attention_heads,
        config.num_key_value_heads));
  }
  if (config.head_dim > kernels::kHeadDimMax) {
    return wrong(fmt::format(
        "head_dim {} is more than {}", config.head_dim, kernels::kHeadDimMax));
  }
  if (config.head_dim % 2 != 0) {
    return wrong(
        fmt::format("head_dim must be even, it is {}", config.head_dim));
  }
  constexpr uint64_t kWidthMax = uint64_t{1} << 24;
  const uint64_t q_width =
      uint64_t{config.num_attention_heads} * config.head_dim;
  for (const uint64_t width : {uint64_t{config.hidden_size},
                               uint64_t{config.intermediate_size},
                               uint64_t{config.vocab_size},
                               q_width}) {
    if (width > kWidthMax) {
      return wrong(
          fmt::format("a width of {} is more than {}", width, kWidthMax));
    }
  }
  if (config.num_hidden_layers > 4096) {
    return wrong(fmt::format("num_hidden_layers {} is more than 4096",
                             config.num_hidden_layers));
  }
  if (!(config.rms_norm_eps >= 0)) {
    return wrong("rms_norm_eps must not be negative");
  }
  return Status();
}

}  // namespace

Result<DecoderConfig> read_config(const Checkpoint& checkpoint) {
  const Json& json = checkpoint.config();
  const auto it = json.find("model_type");
  if (it == json.end() || !it->is_string()) {
    return invalid_input("config.json: model_type is missing (a string)")
        .at(checkpoint.path());
  }
  const auto model_type = it->get<std::string>();
  for (const Row& row : kRows) {
    if (model_type != row.model_type) continue;
    Result<DecoderConfig> config = row.read(json);
    if (!config.ok()) return config.status().at(checkpoint.path());
    if (checkpoint.is_gguf() && row.gguf_interleaved_qk) {
      // Put back in the published order, they rotate as published too.
      config->qk_row_order = nn::RowOrder::kInterleavedHeads;
      config->rope_traditional = false;
    }
    if (const Status status = check(*config); !status.ok()) {
      return status.at(checkpoint.path());
    }
    return config;
  }
  return unsupported(fmt::format(
      "{0}: the architecture '{1}' is not supported; supported are: {2}. If "
      "mlx-lm knows it, the Python package runs it: pip install . (in a clone "
      "of mlx-flash), then python -m mlx_flash run --model {0}",
      checkpoint.path(),
      model_type,
      fmt::join(supported_model_types(), ", ")));
}

std::vector<std::string_view> supported_model_types() {
  std::vector<std::string_view> types;
  for (const Row& row : kRows) types.emplace_back(row.model_type);
  return types;
}

}  // namespace mlx_flash::models
