// SPDX-License-Identifier: MIT
#pragma once

// What stands behind the public Engine, Session and Generation.

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/core.h"
#include "mlx_flash/engine.h"

namespace mlx_flash {

struct Engine::Impl {
  std::unique_ptr<Core> core;
  PlanSummary plan;  // of the core, kept for the reference plan() returns
};

struct Session::Impl {
  explicit Impl(Core& c) : core(c), state(c) {}

  // Runs `fresh` (and tokens whose cache was lost) in forwards of `chunks`
  // lengths, the last repeating; appends what was run to `tokens`.
  // `row(position, logits)` is called for the positions >= first_wanted, `best`
  // filled before each.
  Status feed(std::span<const int32_t> fresh,
              std::span<const uint32_t> chunks,
              size_t first_wanted,
              const LogitsFn& row,
              bool normalised,
              const std::function<void(size_t, size_t)>& progress = nullptr,
              BestTokens* best = nullptr);

  // Takes up what earlier requests have left of `tokens` and `fresh` but the
  // last; returns how many of `fresh` are in `tokens` now.
  size_t begin_with(std::span<const int32_t> fresh);
  // Leaves what is cached for later requests.
  void keep() const;

  Core& core;  // outlives the session
  SessionState state;
  // The conversation. Normally state.length() of them are cached; fewer after
  // a rotating cache could not go back: the next feed() runs them again.
  std::vector<int32_t> tokens;
  // The save that the cache came from or went to: a later one continues it.
  SavedMark saved;
};

}  // namespace mlx_flash
