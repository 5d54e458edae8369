// SPDX-License-Identifier: MIT
#pragma once

// How likely each expert of each layer is to be used by the next token: decayed
// counts of its uses, of all experts, resident or not.
//
// A count decays with several half-lives at once; the score is their weighted
// sum, and the weights are learnt while running, as those that would have
// predicted the last few hundred tokens best (non-negative least squares over
// all experts of all layers). So the half-life tunes itself, and a score is in
// units that mean something: the chance of a use in the next token.
//
// Thread-compatible. No I/O; allocates only when made or restored.

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace mlx_flash {

// What a score is: the chance of a use, or only how recent the last one was
// (what is used least recently goes first).
enum class ExpertPolicy : uint8_t { kFrequency, kRecency };

class ExpertFrequency {
 public:
  static constexpr size_t kHalfLives = 4;
  // In tokens.
  static constexpr std::array<float, kHalfLives> kHalfLife = {3, 20, 150, 1000};

  // What is kept of each expert: counts and score.
  static constexpr uint64_t kSlabBytes = (kHalfLives + 1) * sizeof(float);

  // Experts of each layer, and how many of them a token uses.
  struct Layer {
    uint32_t experts = 0;
    uint32_t active = 0;
  };
  explicit ExpertFrequency(std::span<const Layer> layers,
                           ExpertPolicy policy = ExpertPolicy::kFrequency);

  ExpertPolicy policy() const { return policy_; }

  // A round of a layer: `rows[i]` rows used experts[i]. Changes the counts and
  // scores of this layer alone.
  void use(uint32_t layer,
           std::span<const uint32_t> experts,
           std::span<const uint32_t> rows);

  // Of all experts of the layer.
  std::span<const float> scores(uint32_t layer) const {
    return {scores_.data() + first_[layer], layers_[layer].experts};
  }

  // Whether the last round used the expert.
  bool used(uint32_t expert) const { return used_[expert] > 0; }

  // What a restart goes on with. Counts are in [0, 1].
  struct State {
    std::array<float, kHalfLives> weights = {};
    double tokens = 0;                                  // seen so far
    std::vector<std::array<float, kHalfLives>> counts;  // by slab
  };
  State state() const;
  // False, and nothing changed, if it cannot be of these layers.
  bool restore(const State& state);
  // The weights learnt so far: their half-lives are kHalfLife.
  const std::array<float, kHalfLives>& weights() const { return weights_; }

 private:
  using Counts = std::array<float, kHalfLives>;

  static Counts whole(double tokens);
  void observe(uint32_t layer);
  void learn();
  void score(uint32_t layer);
  void score_recency(uint32_t layer, std::span<const uint32_t> experts);

  ExpertPolicy policy_;
  std::vector<Layer> layers_;
  std::vector<uint32_t> first_;  // slab of a layer's first expert
  std::vector<Counts> counts_;   // by slab
  std::vector<float> scores_;    // by slab
  std::vector<double> tokens_;   // by layer: seen so far
  std::vector<float> used_;      // of the present round, by expert
  Counts weights_ = {};
  // Sums of the least squares, decayed: counts by counts, counts by uses.
  std::array<std::array<double, kHalfLives>, kHalfLives> squares_ = {};
  std::array<double, kHalfLives> products_ = {};
  uint32_t rounds_ = 0;  // since weights were learnt
  uint32_t clock_ = 0;   // rounds of all layers, for kRecency
};

}  // namespace mlx_flash
