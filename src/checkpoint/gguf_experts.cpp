// SPDX-License-Identifier: MIT

// What config.json says of experts and of latent attention, from a GGUF file's
// metadata. Source: llama.cpp, convert_hf_to_gguf.py.

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "base/quote.h"
#include "checkpoint/gguf_names.h"

namespace mlx_flash {
namespace {

// llama.cpp's LLM_EXPERT_GATING_FUNC_TYPE_SIGMOID.
constexpr uint64_t kSigmoid = 2;

// Architectures whose weights are normalised though no field says so.
constexpr std::string_view kNormalised[] = {"qwen3moe", "glm4moe"};

uint64_t whole(const Json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_number_unsigned()
             ? found->get<uint64_t>()
             : 0;
}

// Layers at the end that predict further tokens count as blocks.
Status drop_predictors(const GgufFile& file,
                       const std::string& prefix,
                       Json& config) {
  const std::string key = prefix + "nextn_predict_layers";
  FLASH_ASSIGN_OR_RETURN(const auto extra, file.unsigned_integer(key));
  if (!extra || *extra == 0) return {};
  const uint64_t layers = whole(config, "num_hidden_layers");
  if (*extra >= layers) {
    return invalid_input(fmt::format("{}: metadata {} is {}, of {} blocks",
                                     file.name(),
                                     quote(key),
                                     *extra,
                                     layers));
  }
  config["num_hidden_layers"] = layers - *extra;
  return {};
}

// Heads of latent attention: files that keep one key for all heads give the
// published sizes under names of their own.
Status set_latent(const GgufFile& file,
                  const std::string& prefix,
                  Json& config) {
  if (!config.contains("kv_lora_rank")) return {};
  const auto size = [&](const char* own,
                        const char* plain) -> Result<uint64_t> {
    for (const char* name : {own, plain}) {
      FLASH_ASSIGN_OR_RETURN(
          const auto value,
          file.unsigned_integer(prefix + "attention." + name));
      if (value) return *value;
    }
    return invalid_input(fmt::format("{}: metadata '{}attention.{}' is missing",
                                     file.name(),
                                     prefix,
                                     plain));
  };
  FLASH_ASSIGN_OR_RETURN(const uint64_t keys,
                         size("key_length_mla", "key_length"));
  FLASH_ASSIGN_OR_RETURN(const uint64_t values,
                         size("value_length_mla", "value_length"));
  FLASH_ASSIGN_OR_RETURN(
      const auto rotated,
      file.unsigned_integer(prefix + "rope.dimension_count"));
  if (!rotated || *rotated >= keys) {
    return invalid_input(fmt::format(
        "{}: metadata '{}rope.dimension_count' must be less than the {} of a "
        "key",
        file.name(),
        prefix,
        keys));
  }
  config.erase("head_dim");
  config.erase("partial_rotary_factor");
  if (!config.contains("q_lora_rank")) config["q_lora_rank"] = nullptr;
  config["qk_rope_head_dim"] = *rotated;
  config["qk_nope_head_dim"] = keys - *rotated;
  config["v_head_dim"] = values;
  // A tenth of it is in the file; mscale is always the same number.
  const GgufMetadata* log_multiplier =
      file.find(prefix + "rope.scaling.yarn_log_multiplier");
  const auto scaling = config.find("rope_scaling");
  if (log_multiplier != nullptr && scaling != config.end() &&
      scaling->is_object()) {
    const auto* value = std::get_if<double>(&log_multiplier->scalar);
    if (value != nullptr) {
      const double mscale = static_cast<float>(*value) * 10.0f;
      (*scaling)["mscale"] = (*scaling)["mscale_all_dim"] = mscale;
    }
  }
  return {};
}

Status set_gate(const GgufFile& file,
                const std::string& architecture,
                Json& config) {
  const std::string prefix = architecture + ".";
  FLASH_ASSIGN_OR_RETURN(const auto gating,
                         file.unsigned_integer(prefix + "expert_gating_func"));
  config["scoring_func"] =
      gating.value_or(0) == kSigmoid ? "sigmoid" : "softmax";
  config["norm_topk_prob"] =
      std::find(std::begin(kNormalised), std::end(kNormalised), architecture) !=
      std::end(kNormalised);
  FLASH_ASSIGN_OR_RETURN(const auto normalised,
                         file.boolean(prefix + "expert_weights_norm"));
  if (normalised) config["norm_topk_prob"] = *normalised;
  return {};
}

}  // namespace

Status set_gguf_experts(std::span<const GgufFile> files,
                        const std::string& architecture,
                        Json& config) {
  const GgufFile& file = files.front();
  const std::string prefix = architecture + ".";
  FLASH_RETURN_IF_ERROR(drop_predictors(file, prefix, config));
  FLASH_RETURN_IF_ERROR(set_latent(file, prefix, config));
  const auto experts = config.find("num_experts");
  if (experts == config.end()) return {};
  if (*experts == 0) {  // dense models of 2023 have this
    config.erase("num_experts");
    config.erase("num_experts_per_tok");
    return {};
  }
  // One number, three names of it.
  const Json count = *experts;
  config["num_local_experts"] = config["n_routed_experts"] = count;
  config["decoder_sparse_step"] = 1u;  // every layer has experts
  config["mlp_only_layers"] = Json::array();
  if (whole(config, "n_group") > 1) {
    config["topk_method"] = "group_limited_greedy";
  }
  const bool norms = std::any_of(
      file.tensors().begin(), file.tensors().end(), [](const GgufTensor& t) {
        return t.name.ends_with(".attn_q_norm.weight");
      });
  config["use_qk_norm"] = norms;
  FLASH_RETURN_IF_ERROR(set_gate(file, architecture, config));
  if (config["scoring_func"] == "sigmoid") config["topk_method"] = "noaux_tc";
  return {};
}

}  // namespace mlx_flash
