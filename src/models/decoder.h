// SPDX-License-Identifier: MIT
#pragma once

// A decoder: embedding, layers of attention and a gated MLP or experts with
// norms in front, a final norm and a head. What varies is in DecoderConfig.
//
// Built once, immutable then; forward() runs on the engine's thread.

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kv/kv_cache.h"
#include "models/decoder_config.h"
#include "nn/layers.h"
#include "nn/mla.h"
#include "nn/moe.h"
#include "residency/plan.h"

namespace mlx_flash::models {

class Decoder {
 public:
  // Declares all weights to `store`, in the order of use, and reads the small
  // ones. Fails naming the tensor or field that is wrong.
  static Result<std::unique_ptr<Decoder>> build(const DecoderConfig& config,
                                                nn::WeightStore& store);

  const DecoderConfig& config() const { return config_; }

  KvLayout kv_layout(DType dtype, int quant_bits) const;
  // KV, activations and context for the planner.
  ModelCosts costs(bool stock, DType kv_dtype, int kv_quant) const;
  // Floats of nn::Context's scratch for forwards of at most `rows` rows.
  size_t scratch_floats(size_t rows) const;
  // Bytes of its inputs of matrix products in fixed point.
  size_t prepared_bytes(size_t rows) const;

  // The matrix whose rows are the input embeddings.
  const nn::Linear& embedding() const { return embedding_; }

  // Of all layers, in order.
  std::vector<const nn::AttentionConfig*> attentions() const;

  // New caches of one session, stock only.
  nn::StockKv new_stock_kv() const;

  // Runs the rows of `step` through all layers; the KV of all rows is stored
  // when the result has been evaluated. A long step is evaluated on the way,
  // layer by layer. Nothing if it failed: see context.failure.
  std::optional<mx::array> forward(nn::Context& context, nn::Step& step) const;

  // Final norm and head over rows `rows` (ascending) of what forward()
  // returned: [rows.size(), vocab_size], float32 or, in stock, the model's
  // dtype. Not yet evaluated. Fast also ranks them if `ranking` is not null.
  mx::array logits(nn::Context& context,
                   const mx::array& hidden,
                   std::span<const uint32_t> rows,
                   nn::Ranking* ranking = nullptr) const;

 private:
  struct Layer {
    // With `mla` only attention.o is used.
    nn::AttentionBlock attention;
    std::optional<nn::Mla> mla;
    // Either an MLP or experts.
    nn::Mlp mlp;
    std::optional<nn::MoeBlock> moe;
  };

  Decoder(const DecoderConfig& config, nn::Rope rope)
      : config_(config), rope_(std::move(rope)) {}

  Status build_layer(uint32_t index, nn::WeightStore& store, Layer& layer);
  Status build_attention(uint32_t index,
                         nn::WeightStore& store,
                         nn::AttentionConfig& attention);
  Status build_latent_attention(uint32_t index,
                                nn::WeightStore& store,
                                Layer& layer);
  Status build_latent_maps(const std::string& base,
                           nn::WeightStore& store,
                           nn::Mla& mla);
  Status build_experts(uint32_t index, nn::WeightStore& store, Layer& layer);
  Status build_shared(const std::string& base,
                      nn::WeightStore& store,
                      nn::MoeBlock& block);
  // The experts that come after layer `index`; null: none in the next layer.
  const nn::MoeBlock* experts_after(size_t index) const;
  uint64_t expert_bytes_max() const;  // all experts of a layer, as float32
  size_t dense_inner() const;         // width of the MLPs; 0: there are none
  size_t layer_floats() const;        // of activations in one layer, per row
  size_t stock_layer_floats() const;

  DecoderConfig config_;
  bool stock_ = false;
  nn::Rope rope_;
  nn::Linear embedding_;  // the head's matrix too, if tied
  nn::Linear head_;
  nn::Norm norm_;
  std::vector<Layer> layers_;
};

}  // namespace mlx_flash::models
