// SPDX-License-Identifier: MIT
#include "models/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/matmul.h"

namespace mlx_flash::models {
namespace {

// MLX's evaluation allocates outputs ahead of the stream thread, of at most
// about this many operations of ours (10 tasks of 10 dispatches, 2 dispatches
// an operation), doubled to be safe.
constexpr size_t kOperationsAhead = 100;

// The same for stock, in layers.
constexpr size_t kLayersAhead = 20;

// Longest step that is evaluated in one go; longer ones go layer by layer, so
// that the activations of one layer are alive at a time.
constexpr size_t kWholeStepRows = 1;

}  // namespace

Result<std::unique_ptr<Decoder>> Decoder::build(const DecoderConfig& config,
                                                nn::WeightStore& store) {
  FLASH_ASSIGN_OR_RETURN(
      nn::Rope rope,
      nn::Rope::make(
          {.dims = config.rope_dims != 0 ? config.rope_dims : config.head_dim,
           .base = config.rope_theta,
           .traditional = config.rope_traditional,
           .scaling = &config.rope_scaling,
           .max_position_embeddings = config.max_position_embeddings}));
  std::unique_ptr<Decoder> decoder(new Decoder(config, std::move(rope)));
  decoder->stock_ = store.stock();
  const uint32_t hidden = config.hidden_size;
  if (!config.tie_word_embeddings) {
    FLASH_ASSIGN_OR_RETURN(
        decoder->embedding_,
        store.row_table("model.embed_tokens", config.vocab_size, hidden));
  }
  decoder->layers_.resize(config.num_hidden_layers);
  for (uint32_t i = 0; i < config.num_hidden_layers; ++i) {
    FLASH_RETURN_IF_ERROR(decoder->build_layer(i, store, decoder->layers_[i]));
  }
  FLASH_ASSIGN_OR_RETURN(decoder->norm_.weight,
                         store.small("model.norm.weight", hidden));
  decoder->norm_.eps = config.rms_norm_eps;
  FLASH_ASSIGN_OR_RETURN(
      decoder->head_,
      store.linear(
          config.tie_word_embeddings ? "model.embed_tokens" : "lm_head",
          config.vocab_size,
          hidden,
          false));
  if (config.tie_word_embeddings) decoder->embedding_ = decoder->head_;
  return decoder;
}

Status Decoder::build_layer(uint32_t index,
                            nn::WeightStore& store,
                            Layer& layer) {
  const DecoderConfig& c = config_;
  const std::string base = fmt::format("model.layers.{}.", index);
  const uint32_t q_width = c.num_attention_heads * c.head_dim;
  const uint32_t kv_width = c.num_key_value_heads * c.head_dim;
  const auto norm = [&](const char* name, uint32_t n) -> Result<nn::Norm> {
    FLASH_ASSIGN_OR_RETURN(nn::SmallTensor weight,
                           store.small(base + name + ".weight", n));
    return nn::Norm{std::move(weight), c.rms_norm_eps};
  };
  const auto linear = [&](const char* name,
                          uint32_t rows,
                          uint32_t cols,
                          bool bias,
                          uint32_t heads = 0) {
    return store.linear(base + name,
                        rows,
                        cols,
                        bias,
                        heads != 0 ? c.qk_row_order : nn::RowOrder::kPlain,
                        std::max(heads, 1u));
  };

  // In the order of use.
  FLASH_ASSIGN_OR_RETURN(layer.attention.norm,
                         norm("input_layernorm", c.hidden_size));
  if (c.mla.any()) {
    FLASH_RETURN_IF_ERROR(build_latent_attention(index, store, layer));
  } else {
    FLASH_ASSIGN_OR_RETURN(layer.attention.q,
                           linear("self_attn.q_proj",
                                  q_width,
                                  c.hidden_size,
                                  c.qkv_bias,
                                  c.num_attention_heads));
    FLASH_ASSIGN_OR_RETURN(layer.attention.k,
                           linear("self_attn.k_proj",
                                  kv_width,
                                  c.hidden_size,
                                  c.qkv_bias,
                                  c.num_key_value_heads));
    FLASH_ASSIGN_OR_RETURN(
        layer.attention.v,
        linear("self_attn.v_proj", kv_width, c.hidden_size, c.qkv_bias));
    FLASH_RETURN_IF_ERROR(
        build_attention(index, store, layer.attention.config));
  }
  const uint32_t o_width =
      c.mla.any() ? c.num_attention_heads * c.mla.v_head_dim : q_width;
  FLASH_ASSIGN_OR_RETURN(
      layer.attention.o,
      linear("self_attn.o_proj", c.hidden_size, o_width, c.o_bias));
  FLASH_ASSIGN_OR_RETURN(layer.mlp.norm,
                         norm("post_attention_layernorm", c.hidden_size));
  if (c.moe.has_experts(index)) return build_experts(index, store, layer);
  layer.mlp.activation = c.activation;
  FLASH_ASSIGN_OR_RETURN(
      layer.mlp.gate,
      linear("mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias));
  FLASH_ASSIGN_OR_RETURN(
      layer.mlp.up,
      linear("mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias));
  FLASH_ASSIGN_OR_RETURN(
      layer.mlp.down,
      linear("mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias));
  return Status();
}

Status Decoder::build_attention(uint32_t index,
                                nn::WeightStore& store,
                                nn::AttentionConfig& attention) {
  const DecoderConfig& c = config_;
  attention.layer = index;
  attention.heads = c.num_attention_heads;
  attention.kv_heads = c.num_key_value_heads;
  attention.head_dim = c.head_dim;
  attention.scale = static_cast<float>(
      c.attention_scale != 0 ? c.attention_scale : std::pow(c.head_dim, -0.5));
  attention.window = c.windows[index];
  attention.rope = &rope_;
  const std::string base = fmt::format("model.layers.{}.self_attn.", index);
  if (c.attention_sinks) {
    FLASH_ASSIGN_OR_RETURN(attention.sinks,
                           store.small(base + "sinks", c.num_attention_heads));
  }
  if (!c.qk_norm && !c.qk_norm_whole) return Status();
  const uint32_t q_heads = c.qk_norm_whole ? c.num_attention_heads : 1;
  const uint32_t k_heads = c.qk_norm_whole ? c.num_key_value_heads : 1;
  attention.norm_whole = c.qk_norm_whole;
  attention.q_norm.emplace();
  attention.k_norm.emplace();
  FLASH_ASSIGN_OR_RETURN(
      attention.q_norm->weight,
      store.small(base + "q_norm.weight", q_heads * c.head_dim));
  FLASH_ASSIGN_OR_RETURN(
      attention.k_norm->weight,
      store.small(base + "k_norm.weight", k_heads * c.head_dim));
  attention.q_norm->eps = attention.k_norm->eps = c.rms_norm_eps;
  return Status();
}

std::vector<const nn::AttentionConfig*> Decoder::attentions() const {
  std::vector<const nn::AttentionConfig*> all;
  for (const Layer& layer : layers_) all.push_back(&layer.attention.config);
  return all;
}

KvLayout Decoder::kv_layout(DType dtype, int quant_bits) const {
  if (config_.mla.any()) {
    const MlaConfig& mla = config_.mla;
    const bool all_heads = stock_ && mla.expanded;
    return {.layers = config_.num_hidden_layers,
            .kv_heads = all_heads ? config_.num_attention_heads : 1,
            .head_dim = all_heads ? config_.head_dim
                                  : mla.kv_lora_rank + mla.qk_rope_head_dim,
            .value_dim = all_heads ? mla.v_head_dim : mla.kv_lora_rank,
            .dtype = dtype,
            .quant_bits = quant_bits,
            .windows = config_.windows,
            .values_in_keys = !all_heads};
  }
  return {.layers = config_.num_hidden_layers,
          .kv_heads = config_.num_key_value_heads,
          .head_dim = config_.head_dim,
          .value_dim = config_.head_dim,
          .dtype = dtype,
          .quant_bits = quant_bits,
          .windows = config_.windows};
}

size_t Decoder::dense_inner() const {
  const auto has_mlp = [](const Layer& layer) { return !layer.moe; };
  return std::any_of(layers_.begin(), layers_.end(), has_mlp)
             ? config_.intermediate_size
             : 0;
}

size_t Decoder::layer_floats() const {
  // Two residual streams in, one between, one out; what is attended to.
  const size_t latent =
      config_.mla.any()
          ? size_t{config_.num_attention_heads} * config_.mla.v_head_dim
          : 0;
  return 4 * size_t{config_.hidden_size} + latent;
}

size_t Decoder::stock_layer_floats() const {
  const size_t q = size_t{config_.num_attention_heads} * config_.head_dim;
  const size_t kv = size_t{config_.num_key_value_heads} * config_.head_dim;
  // As above, and what are arrays of their own: q, k, v; attention; MLP.
  return 4 * size_t{config_.hidden_size} + 2 * q + 2 * kv + dense_inner();
}

size_t Decoder::scratch_floats(size_t rows) const {
  const size_t hidden = config_.hidden_size;
  size_t floats = rows * hidden;  // of the norm in front of the head
  for (const Layer& layer : layers_) {
    floats =
        std::max(floats,
                 layer.mla ? nn::latent_scratch_floats(*layer.mla, hidden, rows)
                           : nn::attention_scratch_floats(
                                 layer.attention.config, hidden, rows));
    floats = std::max(floats,
                      layer.moe ? nn::expert_scratch_floats(*layer.moe, rows)
                                : nn::mlp_scratch_floats(
                                      hidden, config_.intermediate_size, rows));
  }
  return floats;
}

size_t Decoder::prepared_bytes(size_t rows) const {
  const size_t widest =
      std::max({size_t{config_.hidden_size},
                dense_inner(),
                size_t{config_.moe.moe_intermediate_size},
                size_t{config_.moe.shared_intermediate_size},
                size_t{config_.mla.q_lora_rank},
                size_t{config_.mla.kv_lora_rank},
                size_t{config_.num_attention_heads} *
                    std::max(config_.head_dim, config_.mla.v_head_dim)});
  return rows * kernels::prepared_row_bytes_max(widest);
}

ModelCosts Decoder::costs(bool stock, DType kv_dtype, int kv_quant) const {
  ModelCosts costs;
  const KvLayout kv = kv_layout(kv_dtype, kv_quant);
  costs.kv_bytes_per_token = kv.layers *
                             (stock ? kv.full_bytes() : kv.old_stride()) /
                             kernels::kKvBlock;
  if (kv_quant != 0) {
    costs.kv_tail_tokens = kKvTailTokens;
    costs.kv_tail_bytes_per_token =
        kv.layers * kv.full_stride() / kernels::kKvBlock;
  }
  if (!stock) {
    // With old blocks elsewhere, one layer of a forward is whole at a time.
    costs.kv_chunk_bytes_per_row =
        kv_quant != 0 ? kv.full_stride() / kernels::kKvBlock : 0;
    costs.kv_floor_bytes =
        kv.layers * kv.full_stride() * (kKvTailTokens / kernels::kKvBlock) +
        (kKvRing + 2) * (kv.old_stride() + kKvAlignment);
  }
  costs.kv_block_tokens = kernels::kKvBlock;
  // Dynamic rope goes on where the trained length ends.
  costs.context_max = rope_.grows() ? 0 : config_.max_position_embeddings;
  const size_t row =
      (stock ? stock_layer_floats() : layer_floats()) * sizeof(float);
  const size_t widest_output =
      std::max(size_t{config_.hidden_size},
               size_t{config_.num_attention_heads} * config_.mla.v_head_dim);
  costs.activation_fixed_bytes =
      kWholeStepRows * (stock
                            ? kLayersAhead * row
                            : kOperationsAhead * widest_output * sizeof(float));
  // Scratch grows by the same number of floats with each row.
  const size_t scratch = scratch_floats(2) - scratch_floats(1);
  costs.activation_fixed_bytes += (scratch_floats(1) - scratch) * sizeof(float);
  costs.activation_bytes_per_row =
      row + scratch * sizeof(float) + prepared_bytes(1) + config_.head_dim * 16;
  // The head's output, the copy the sampler sorts, its indices.
  costs.activation_bytes_per_logit_row = size_t{config_.vocab_size} * 16;
  if (stock) {
    costs.kv_block_tokens = nn::kStockKvStep;
    // MLX's own operations: a whole matrix beside the stream, scores of all
    // heads over the context, several temporaries of each.
    const size_t widest = std::max({size_t{config_.vocab_size},
                                    dense_inner(),
                                    size_t{config_.hidden_size}});
    costs.activation_fixed_bytes +=
        widest * size_t{config_.hidden_size} * sizeof(float) +
        expert_bytes_max();
    costs.activation_bytes_per_row *= 4;
  }
  return costs;
}

nn::StockKv Decoder::new_stock_kv() const {
  nn::StockKv kv;
  for (const uint32_t window : config_.windows) {
    kv.emplace_back(static_cast<int>(window));
  }
  return kv;
}

std::optional<mx::array> Decoder::forward(nn::Context& context,
                                          nn::Step& step) const {
  nn::prepare_rope(context, rope_, step);
  const bool whole = !context.stock && step.tokens.size() <= kWholeStepRows;
  mx::array h =
      nn::embed(context, embedding_, step, config_.embedding_multiplier);
  size_t done = 0;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const float multiplier = config_.residual_multiplier;
    if (layer.mla) {
      const mx::array attended =
          nn::latent_attention(context, *layer.mla, step, h);
      h = nn::linear_add(context, layer.attention.o, attended, h, multiplier);
    } else {
      h = nn::add_attention(context, layer.attention, step, h, multiplier);
    }
    h = layer.moe ? nn::add_experts(context, *layer.moe, experts_after(i), h)
                  : nn::add_mlp(context, layer.mlp, h, multiplier);
    if (!whole) h.eval();
    if (!context.failure.ok()) return std::nullopt;
    ++done;
    if (!whole && context.layer_done) context.layer_done(done, layers_.size());
  }
  return h;
}

mx::array Decoder::logits(nn::Context& context,
                          const mx::array& hidden,
                          std::span<const uint32_t> rows,
                          nn::Ranking* ranking) const {
  const int axis = context.stock ? 1 : 0;
  mx::array h = hidden;
  if (static_cast<int>(rows.size()) != h.shape(axis)) {
    h = nn::take_rows(context, h, rows);
  }
  h = nn::head(context, norm_, head_, config_.logits_scaling, h, ranking);
  return context.stock ? mx::squeeze(h, 0, context.mx_stream) : h;
}

}  // namespace mlx_flash::models
