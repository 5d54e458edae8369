// SPDX-License-Identifier: MIT
#pragma once

// An ExpertStream without a cache: each expert is read from its files when its
// turn comes, in the order that begin() was given or any other. For tests of
// what consumes the stream.
//
// Thread-compatible.

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "io/file.h"
#include "residency/expert_stream.h"

namespace mlx_flash::testing {

struct DirectExpertOptions {
  uint32_t rows_per_piece = 0;  // 0: an expert is one piece
  bool backwards = false;       // experts in falling order
  bool alternate = false;       // pieces of all experts in turns
  // Called for each expert that a round wants, and may change which one's
  // bytes it gets: a planted fault.
  std::function<uint32_t(uint32_t layer, uint32_t expert)> replace = nullptr;
  // Sees what is announced.
  std::function<void(uint32_t layer, std::span<const uint32_t> experts)>
      on_look_ahead = nullptr;
};

// `layers` and `files` outlive the stream.
std::unique_ptr<ExpertStream> make_direct_expert_stream(
    std::span<const ExpertLayer> layers,
    std::span<const File> files,
    DirectExpertOptions options = {});

}  // namespace mlx_flash::testing
