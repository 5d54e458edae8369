// SPDX-License-Identifier: MIT
#include "engine/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace mlx_flash {

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::~Session() = default;

size_t Session::position() const {
  return impl_->tokens.size();
}

const std::vector<int32_t>& Session::tokens() const {
  return impl_->tokens;
}

Status Session::truncate(size_t position) {
  if (position > impl_->tokens.size()) {
    return invalid_input(fmt::format("cannot go back to token {}: there are {}",
                                     position,
                                     impl_->tokens.size()));
  }
  impl_->tokens.resize(position);
  impl_->state.truncate(position);
  return Status();
}

void Session::interrupt() {
  impl_->state.interrupted().store(true);
}

void Session::clear_interrupt() {
  impl_->state.interrupted().store(false);
}

Status Session::forward(std::span<const int32_t> tokens,
                        std::span<const uint32_t> chunks,
                        const LogitsFn& row) {
  if (tokens.empty()) {
    return invalid_input("there are no tokens to run");
  }
  Status status = impl_->feed(tokens, chunks, impl_->tokens.size(), row, false);
  impl_->state.interrupted().store(false);
  return status;
}

size_t Session::Impl::begin_with(std::span<const int32_t> fresh) {
  if (fresh.empty() || tokens.size() + fresh.size() > core.plan().context) {
    return 0;
  }
  const size_t before = tokens.size();
  std::vector<int32_t> all = tokens;
  all.insert(all.end(), fresh.begin(), fresh.end() - 1);
  core.begin_with(state, all);
  if (state.length() <= before) return 0;
  all.resize(state.length());
  tokens = std::move(all);
  return tokens.size() - before;
}

void Session::Impl::keep() const {
  core.keep(state, std::span(tokens).first(state.length()));
}

Status Session::Impl::feed(std::span<const int32_t> fresh,
                           std::span<const uint32_t> chunks,
                           size_t first_wanted,
                           const LogitsFn& row,
                           bool normalised,
                           const std::function<void(size_t, size_t)>& progress,
                           BestTokens* best) {
  const size_t context = core.plan().context;
  const bool bounded = core.config().kv_keep_tokens == 0;
  if (bounded && tokens.size() + fresh.size() > context) {
    return invalid_input(fmt::format(
        "{} tokens do not fit: the context holds {}, {} are in use; shorten "
        "the prompt or raise --ctx or --ram",
        fresh.size(),
        context,
        tokens.size()));
  }
  const size_t before = tokens.size();
  std::vector<int32_t> all(
      tokens.begin() + static_cast<ptrdiff_t>(state.known()), tokens.end());
  all.insert(all.end(), fresh.begin(), fresh.end());
  const size_t start = state.known();
  size_t done = 0;
  std::vector<BatchRow> batch;
  for (size_t chunk = 0; done < all.size();) {
    size_t n = core.prefill_rows();
    if (!chunks.empty()) {
      n = std::max<size_t>(1, chunks[std::min(chunk, chunks.size() - 1)]);
      ++chunk;
    }
    n = std::min(n, all.size() - done);
    state.make_way(core);
    if (!bounded) n = std::min(n, context - state.length());
    batch.clear();
    for (size_t i = 0; i < n; ++i) {
      batch.push_back({.session = &state,
                       .position = static_cast<uint32_t>(state.length() + i),
                       .token = static_cast<uint32_t>(all[done + i]),
                       .want_logits = row && start + done + i >= first_wanted,
                       .best = best});
    }
    // A batch longer than the plan's (asked for by name, in fast) goes in
    // pieces: no bit depends on it.
    for (size_t at = 0; at < n;) {
      const size_t rows = std::min(n - at, core.prefill_rows());
      const auto piece = std::span(batch).subspan(at, rows);
      Core::LayerFn layer_done;
      if (progress) {
        layer_done = [&](size_t layer, size_t layers) {
          if (layer < layers)
            progress(done + rows * layer / layers, all.size());
        };
      }
      FLASH_RETURN_IF_ERROR(core.forward(
          piece,
          [&](size_t i, std::span<const float> logits) {
            row(start + done + i, logits);
          },
          normalised,
          layer_done));
      at += rows;
      done += rows;
      while (tokens.size() < state.known()) {
        tokens.push_back(fresh[tokens.size() - before]);
      }
      if (progress) progress(done, all.size());
    }
  }
  return Status();
}

}  // namespace mlx_flash
