// SPDX-License-Identifier: MIT
#pragma once

// What earlier runs learnt of a model's experts, and what this one did: a file
// in a folder, by the model's fingerprint.
//
// A hint only: whatever is wrong with the file, the run begins without it.

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "residency/expert_frequency.h"
#include "residency/expert_layer.h"

namespace mlx_flash {

class LearntExperts {
 public:
  // `folder` empty: nothing is known and nothing kept.
  void open(const std::string& folder,
            uint64_t fingerprint,
            std::span<const ExpertLayer> layers);

  // Null: nothing is known. Valid until the next open().
  const ExpertFrequency* known() const { return known_ ? &*known_ : nullptr; }

  // For the next run. Does nothing if nothing has been added.
  void save(const ExpertFrequency::State& state) const;

 private:
  std::string folder_;
  std::string path_;  // empty: nothing is kept
  uint64_t fingerprint_ = 0;
  std::optional<ExpertFrequency> known_;
};

}  // namespace mlx_flash
