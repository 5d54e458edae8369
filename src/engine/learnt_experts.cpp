// SPDX-License-Identifier: MIT
#include "engine/learnt_experts.h"

#include <fmt/format.h>

#include <filesystem>
#include <vector>

#include "base/log.h"
#include "residency/learnt_file.h"

namespace mlx_flash {

void LearntExperts::open(const std::string& folder,
                         uint64_t fingerprint,
                         std::span<const ExpertLayer> layers) {
  known_.reset();
  path_.clear();
  if (folder.empty() || layers.empty()) return;
  folder_ = folder;
  path_ = fmt::format("{}/{:016x}", folder, fingerprint);
  fingerprint_ = fingerprint;
  std::error_code none;
  if (!std::filesystem::exists(path_, none)) return;
  std::vector<ExpertFrequency::Layer> shapes;
  uint64_t slabs = 0;
  for (const ExpertLayer& layer : layers) {
    shapes.push_back({layer.experts, layer.active});
    slabs += layer.experts;
  }
  const auto state = read_learnt(path_, fingerprint, slabs);
  known_.emplace(shapes);
  if (state.ok() && known_->restore(*state)) return;
  known_.reset();
  log_debug(fmt::format("nothing is known of the experts: {}",
                        state.ok() ? path_ + ": numbers that cannot be"
                                   : state.status().message()));
}

void LearntExperts::save(const ExpertFrequency::State& state) const {
  if (path_.empty() || state.tokens <= 0) return;
  if (known_ && known_->state().tokens == state.tokens) return;
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (const Status bad = write_learnt(path_, fingerprint_, state); !bad.ok()) {
    log_debug(fmt::format("what was learnt of the experts is not kept: {}",
                          bad.message()));
  }
}

}  // namespace mlx_flash
