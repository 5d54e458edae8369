// SPDX-License-Identifier: MIT
#include "models/registry.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <string_view>
#include <vector>

#include "kernels/attention.h"

namespace mlx_flash::models {
namespace {

struct Row {
  const char* model_type;  // of config.json; empty: only GGUF calls it so
  const char* gguf;        // general.architecture; empty: no such files
  Result<DecoderConfig> (*read)(const Json& config);
  // GGUF files of this architecture hold the rows of q and k with rotary
  // pairs side by side.
  bool gguf_interleaved_qk;
};

constexpr Row kRows[] = {
    {"deepseek", "deepseek", deepseek_config, true},
    {"deepseek_v2", "", deepseek_v2_config, false},
    {"deepseek_v3", "", deepseek_v3_config, false},
    {"", "deepseek2", deepseek2_config, false},
    {"glm4_moe", "glm4moe", glm4_moe_config, false},
    {"gpt_oss", "gpt-oss", gpt_oss_config, false},
    {"granitemoe", "granitemoe", granitemoe_config, true},
    {"llama", "llama", llama_config, true},
    {"mistral", "", llama_config, false},  // as mlx-lm: the llama model
    {"mixtral", "", mixtral_config, false},
    {"olmoe", "olmoe", olmoe_config, false},
    {"qwen2", "qwen2", qwen2_config, false},
    {"qwen2_moe", "qwen2moe", qwen2_moe_config, false},
    {"qwen3", "qwen3", qwen3_config, false},
    {"qwen3_moe", "qwen3moe", qwen3_moe_config, false},
};

std::string_view name_of(const Row& row, bool gguf) {
  return gguf ? row.gguf : row.model_type;
}

std::vector<std::string_view> supported(bool gguf) {
  std::vector<std::string_view> names;
  for (const Row& row : kRows) {
    if (!name_of(row, gguf).empty()) names.push_back(name_of(row, gguf));
  }
  return names;
}

// GGUF has one set of names for the experts of all architectures.
void gguf_names(MoeConfig& moe) {
  moe.block = "mlp";
  moe.router = "gate";
  moe.shared = "shared_experts";
  if (!moe.correction.empty()) {
    moe.correction = "gate.e_score_correction_bias.bias";
  }
}

Status check_experts(const MoeConfig& moe) {
  const auto wrong = [](const std::string& what) {
    return invalid_input("config.json: " + what);
  };
  constexpr uint32_t kExpertsMax = 1024;
  const nn::Routing& routing = moe.routing;
  if (routing.experts > kExpertsMax) {
    return wrong(fmt::format(
        "{} experts are more than {}", routing.experts, kExpertsMax));
  }
  if (routing.top_k == 0 || routing.top_k > routing.experts) {
    return wrong(
        fmt::format("num_experts_per_tok ({}) must be at most the {} "
                    "experts there are",
                    routing.top_k,
                    routing.experts));
  }
  if (routing.groups == 0 || routing.experts % routing.groups != 0 ||
      routing.groups_kept == 0 || routing.groups_kept > routing.groups ||
      (routing.groups > 1 && routing.experts / routing.groups < 2)) {
    return wrong(fmt::format("{} experts cannot be in {} groups, {} kept",
                             routing.experts,
                             routing.groups,
                             routing.groups_kept));
  }
  return Status();
}

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
  const uint64_t key_width = std::max<uint64_t>(
      config.head_dim,
      uint64_t{config.mla.kv_lora_rank} + config.mla.qk_rope_head_dim);
  if (key_width > kernels::kHeadDimMax) {
    return wrong(fmt::format("heads of {} values are more than {}",
                             key_width,
                             kernels::kHeadDimMax));
  }
  if (config.head_dim % 2 != 0) {
    return wrong(
        fmt::format("head_dim must be even, it is {}", config.head_dim));
  }
  constexpr uint64_t kWidthMax = uint64_t{1} << 24;
  const uint64_t q_width =
      uint64_t{config.num_attention_heads} * config.head_dim;
  for (const uint64_t width :
       {uint64_t{config.hidden_size},
        uint64_t{config.intermediate_size},
        uint64_t{config.moe.moe_intermediate_size},
        uint64_t{config.moe.shared_intermediate_size},
        uint64_t{config.vocab_size},
        uint64_t{config.mla.q_lora_rank},
        uint64_t{config.num_attention_heads} * config.mla.v_head_dim,
        q_width}) {
    if (width > kWidthMax) {
      return wrong(
          fmt::format("a width of {} is more than {}", width, kWidthMax));
    }
  }
  if (config.num_attention_heads > 4096) {
    return wrong(fmt::format("num_attention_heads {} is more than 4096",
                             config.num_attention_heads));
  }
  if (!(config.rms_norm_eps >= 0)) {
    return wrong("rms_norm_eps must not be negative");
  }
  return config.moe.any() ? check_experts(config.moe) : Status();
}

// As a word of a command line.
std::string for_a_shell(const std::string& text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
           std::string_view("_./-+@:,=%").find(c) != std::string_view::npos;
  });
  if (plain) return text;
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? "'\\''" : std::string(1, c);
  return word + "'";
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
    const bool gguf = checkpoint.is_gguf();
    if (model_type.empty() || model_type != name_of(row, gguf)) continue;
    Result<DecoderConfig> config = row.read(json);
    if (!config.ok()) return config.status().at(checkpoint.path());
    if (gguf) gguf_names(config->moe);
    if (gguf && !checkpoint.find("model.layers.0.self_attn.kv_b_proj.weight")) {
      config->mla.expanded = false;  // its two halves are all there is
    }
    if (gguf && row.gguf_interleaved_qk) {
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
      "of mlx-flash), then python -m mlx_flash run --model {3}",
      checkpoint.path(),
      model_type,
      fmt::join(supported(checkpoint.is_gguf()), ", "),
      for_a_shell(checkpoint.path())));
}

Status set_top_k(DecoderConfig& config, uint32_t top_k) {
  if (!config.moe.any()) {
    return invalid_input(
        "a number of experts was asked for (--moe-top-k), but the model has "
        "no experts");
  }
  const uint32_t experts = config.moe.routing.experts;
  if (top_k == 0 || top_k > experts) {
    return invalid_input(
        fmt::format("{} experts for a token were asked for (--moe-top-k), the "
                    "model has {}",
                    top_k,
                    experts));
  }
  config.moe.routing.top_k = top_k;
  return Status();
}

}  // namespace mlx_flash::models
