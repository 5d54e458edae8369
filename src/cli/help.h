// SPDX-License-Identifier: MIT
#pragma once

// --help, in one style for the program and its commands. Pure functions.

#include <CLI/CLI.hpp>
#include <string>

namespace mlx_flash {

// The whole text of --help. `usage`: the words after "mlx-flash". `columns`:
// where descriptions wrap.
std::string help_text(const CLI::App& app,
                      const std::string& usage,
                      int columns = 80);

}  // namespace mlx_flash
