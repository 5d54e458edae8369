// SPDX-License-Identifier: MIT
#pragma once

// Rotary position embedding in the variants of mlx-lm (models/rope_utils.py):
// default, linear, dynamic, llama3, yarn, longrope.
//
// In stock the operations are mlx-lm's own. In fast the angle of a position is
// computed in float32 exactly as there (position * scale, times the inverse
// frequency); cosine and sine are taken in double and rounded once.
//
// Immutable after make(); thread-compatible.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/status.h"
#include "nn/mlx.h"

namespace mlx_flash::nn {

class Rope {
 public:
  struct Options {
    uint32_t dims = 0;  // values of a head that are rotated, even
    double base = 10000;
    bool traditional = false;
    // config.json's rope_scaling (an object or null).
    const Json* scaling = nullptr;
    uint64_t max_position_embeddings = 0;  // 0: not given
  };

  // Fails on an unknown rope type or a missing or nonsensical parameter,
  // naming the config field.
  static Result<Rope> make(const Options& options);

  uint32_t dims() const { return dims_; }
  bool traditional() const { return traditional_; }
  bool grows() const { return dynamic_factor_ != 0; }  // any position will do
  float mscale() const { return mscale_; }  // multiplies what is rotated

  // Fast: cosines then sines (dims / 2 of each) for each position, row after
  // row: table has positions.size() * dims() floats.
  void fill(std::span<const uint32_t> positions, float* table) const;

  // Stock: rotates x [batch, heads, length, head_dim] from position `offset`.
  mx::array apply(const mx::array& x, int offset, mx::Stream stream) const;

 private:
  Rope() = default;

  Status set_llama3(const Json& scaling, double base);
  Status set_yarn(const Json& scaling, double base);
  Status set_longrope(const Json& scaling, double base, uint64_t max_position);
  Status set_freq_factors(const Json& scaling, double base);
  void set_freqs(mx::array freqs);
  float dynamic_base(uint64_t length) const;

  uint32_t dims_ = 0;
  bool traditional_ = false;
  float base_ = 10000;  // unless freqs_
  float scale_ = 1;     // of positions
  float mscale_ = 1;
  std::optional<mx::array> freqs_;  // divisors of the position
  std::vector<float> inv_freqs_;    // fast, dims_ / 2
  double dynamic_factor_ = 0;       // 0: not dynamic
  double dynamic_base_ = 0;
  uint64_t dynamic_max_position_ = 0;
};

}  // namespace mlx_flash::nn
