// SPDX-License-Identifier: MIT

// A decoder's multi-head latent attention.

#include <fmt/format.h>

#include "models/decoder.h"

namespace mlx_flash::models {
namespace {

// Of the norms in front of the second projections, whatever the config says.
constexpr float kLatentNormEps = 1e-6f;

}  // namespace

Status Decoder::build_latent_attention(uint32_t index,
                                       nn::WeightStore& store,
                                       Layer& layer) {
  const DecoderConfig& c = config_;
  const MlaConfig& from = c.mla;
  const std::string base = fmt::format("model.layers.{}.self_attn.", index);
  nn::Mla& mla = layer.mla.emplace();
  mla.heads = c.num_attention_heads;
  mla.latent = from.kv_lora_rank;
  mla.plain = from.qk_nope_head_dim;
  mla.rotated = from.qk_rope_head_dim;
  mla.value = from.v_head_dim;
  mla.expanded = from.expanded;
  mla.input_norm = layer.attention.norm;
  mla.attention = {.layer = index,
                   .heads = mla.heads,
                   .kv_heads = 1,
                   .head_dim = mla.latent + mla.rotated,
                   .value_dim = mla.latent,
                   .scale = static_cast<float>(c.attention_scale),
                   .window = 0,
                   .rope = &rope_,
                   .q_norm = std::nullopt,
                   .k_norm = std::nullopt,
                   .norm_whole = false,
                   .sinks = std::nullopt,
                   .values_in_keys = true};
  const auto norm = [&](const char* name, uint32_t n) -> Result<nn::Norm> {
    FLASH_ASSIGN_OR_RETURN(nn::SmallTensor weight,
                           store.small(base + name + ".weight", n));
    return nn::Norm{std::move(weight), kLatentNormEps};
  };

  // In the order of use.
  const uint32_t q_rows = mla.heads * (mla.plain + mla.rotated);
  if (from.q_lora_rank != 0) {
    FLASH_ASSIGN_OR_RETURN(
        mla.q_a,
        store.linear(
            base + "q_a_proj", from.q_lora_rank, c.hidden_size, c.qkv_bias));
    FLASH_ASSIGN_OR_RETURN(mla.q_a_norm,
                           norm("q_a_layernorm", from.q_lora_rank));
    FLASH_ASSIGN_OR_RETURN(
        mla.q,
        store.linear(base + "q_b_proj", q_rows, from.q_lora_rank, false));
  } else {
    FLASH_ASSIGN_OR_RETURN(
        mla.q, store.linear(base + "q_proj", q_rows, c.hidden_size, false));
  }
  FLASH_ASSIGN_OR_RETURN(mla.kv_a,
                         store.linear(base + "kv_a_proj_with_mqa",
                                      mla.latent + mla.rotated,
                                      c.hidden_size,
                                      c.qkv_bias));
  FLASH_ASSIGN_OR_RETURN(mla.kv_a_norm, norm("kv_a_layernorm", mla.latent));
  return build_latent_maps(base, store, mla);
}

Status Decoder::build_latent_maps(const std::string& base,
                                  nn::WeightStore& store,
                                  nn::Mla& mla) {
  const uint32_t heads = mla.heads;
  if (store.checkpoint().find(base + "embed_q.weight") != nullptr) {
    FLASH_ASSIGN_OR_RETURN(
        mla.embed_q,
        store.stacked(base + "embed_q", heads, mla.latent, mla.plain));
    FLASH_ASSIGN_OR_RETURN(
        mla.unembed_out,
        store.stacked(base + "unembed_out", heads, mla.value, mla.latent));
    return Status();
  }
  const std::string path = base + "kv_b_proj";
  const uint64_t step = mla.plain + mla.value;
  const uint64_t rows = heads * step;
  if (store.stock()) {
    if (!mla.expanded && store.checkpoint().find(path + ".scales") != nullptr) {
      return unsupported(fmt::format(
          "{}: {} is quantised, and mlx-lm would quantise it once more; use "
          "--kernels fast, or convert the model with mlx-lm",
          store.checkpoint().path(),
          path));
    }
    FLASH_ASSIGN_OR_RETURN(mla.kv_b,
                           store.linear(path, rows, mla.latent, false));
    return Status();
  }
  for (const bool values : {false, true}) {
    for (uint32_t h = 0; h < heads; ++h) {
      FLASH_ASSIGN_OR_RETURN(nn::Linear part,
                             store.rows_of(path,
                                           rows,
                                           mla.latent,
                                           h * step + (values ? mla.plain : 0),
                                           values ? mla.value : mla.plain));
      (values ? mla.head_values : mla.head_keys).push_back(part);
    }
  }
  return Status();
}

}  // namespace mlx_flash::models
