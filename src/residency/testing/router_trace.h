// SPDX-License-Identifier: MIT
#pragma once

// What a router chose, token by token, and how caches would have done with it:
// ours, LRU, and an oracle. For the tool expert_replay and for tests.
//
// A trace file is uint8 [token][layer][active]: the experts' numbers.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "residency/expert_frequency.h"

namespace mlx_flash::testing {

class RouterTrace {
 public:
  // Fails for a file that is not of whole tokens or names an expert too high.
  static Result<RouterTrace> open(const std::string& path,
                                  uint32_t layers,
                                  uint32_t active,
                                  uint32_t experts);

  uint32_t tokens() const { return tokens_; }
  uint32_t layers() const { return layers_; }
  uint32_t active() const { return active_; }
  uint32_t experts() const { return experts_; }
  uint32_t slabs() const { return layers_ * experts_; }
  std::span<const uint32_t> at(uint32_t token, uint32_t layer) const {
    return {chosen_.data() + (size_t{token} * layers_ + layer) * active_,
            active_};
  }

 private:
  uint32_t tokens_ = 0;
  uint32_t layers_ = 0;
  uint32_t active_ = 0;
  uint32_t experts_ = 0;
  std::vector<uint32_t> chosen_;
};

// Hits over uses of the tokens from `warm` on, with memory for `capacity`
// slabs of one size.
double lru_hit_rate(const RouterTrace& trace, uint32_t capacity, uint32_t warm);
// Evicts what is used last, and keeps no newcomer that is used later than all.
double belady_hit_rate(const RouterTrace& trace,
                       uint32_t capacity,
                       uint32_t warm);
// Counts that decay with one half-life, in tokens, and admission.
double lfu_hit_rate(const RouterTrace& trace,
                    uint32_t capacity,
                    uint32_t warm,
                    double half_life);
// The ExpertCache of ordinary runs, with reads that take no time. It has one
// place more: what is used and not kept lies somewhere, too.
double cache_hit_rate(const RouterTrace& trace,
                      uint32_t capacity,
                      uint32_t warm,
                      ExpertPolicy policy = ExpertPolicy::kFrequency);

// What the first `tokens` of the trace teach.
ExpertFrequency::State learn_from(const RouterTrace& trace, uint32_t tokens);

}  // namespace mlx_flash::testing
