// SPDX-License-Identifier: MIT
#pragma once

// --session FILE: a conversation that goes on after a restart.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <span>
#include <string>

#include "mlx_flash/engine.h"

namespace mlx_flash {

void add_session_option(CLI::App& app, std::string& path);

// Session::restore(), with a warning for what could not be taken up. Nothing
// is done for an empty path.
Result<RestoredSession> take_up(Session& session, const std::string& path);

// How many of the prompt's ids the session has already; it forgets the rest of
// its own. One id at least is left, because an answer starts from its logits.
// REQUIRES: !ids.empty()
Result<size_t> keep_prefix(Session& session, std::span<const int32_t> ids);

}  // namespace mlx_flash
