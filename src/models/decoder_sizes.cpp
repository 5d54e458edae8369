// SPDX-License-Identifier: MIT
#include "models/decoder_sizes.h"

#include <fmt/format.h>

namespace mlx_flash::models {
namespace {

constexpr uint32_t kLayersMax = 4096;

uint32_t size_or_given(ConfigReader& in, const char* key, uint32_t value) {
  return value == kGiven ? in.size(key) : in.size_or(key, value);
}

}  // namespace

DecoderConfig read_sizes(ConfigReader& in, const SizeDefaults& defaults) {
  DecoderConfig out;
  out.hidden_size = size_or_given(in, "hidden_size", defaults.hidden_size);
  out.num_hidden_layers =
      size_or_given(in, "num_hidden_layers", defaults.num_hidden_layers);
  if (out.num_hidden_layers > kLayersMax) {
    // Lists of that length are made before anything else is checked.
    in.fail(fmt::format("num_hidden_layers {} is more than {}",
                        out.num_hidden_layers,
                        kLayersMax));
    out.num_hidden_layers = 1;
  }
  out.num_attention_heads =
      size_or_given(in, "num_attention_heads", defaults.num_attention_heads);
  const uint32_t heads = out.num_attention_heads;
  out.num_key_value_heads =
      size_or_given(in,
                    "num_key_value_heads",
                    defaults.num_key_value_heads == kFromHeads
                        ? heads
                        : defaults.num_key_value_heads);
  const uint32_t each = out.hidden_size / heads;
  out.head_dim =
      defaults.head_dim_ignored
          ? each
          : size_or_given(
                in,
                "head_dim",
                defaults.head_dim == kFromHeads ? each : defaults.head_dim);
  out.vocab_size = size_or_given(in, "vocab_size", defaults.vocab_size);
  out.max_position_embeddings = size_or_given(
      in, "max_position_embeddings", defaults.max_position_embeddings);
  out.rms_norm_eps = static_cast<float>(
      defaults.rms_norm_eps < 0
          ? in.number("rms_norm_eps")
          : in.number_or("rms_norm_eps", defaults.rms_norm_eps));
  out.windows.assign(out.num_hidden_layers, 0);
  return out;
}

std::vector<bool> layers_after_dense(ConfigReader& in,
                                     uint32_t layers,
                                     uint32_t step) {
  const uint32_t dense = in.whole_or("first_k_dense_replace", 0);
  std::vector<bool> out(layers, false);
  for (uint32_t i = dense; i < layers; ++i) out[i] = i % step == 0;
  return out;
}

uint32_t shared_width(ConfigReader& in, const MoeConfig& moe) {
  if (!in.has("n_shared_experts")) return 0;
  return in.size_times("n_shared_experts", moe.moe_intermediate_size);
}

}  // namespace mlx_flash::models
