// SPDX-License-Identifier: MIT
#pragma once

// The commands, one file each. A row of kCommands (main.cpp) is all that a new
// one needs besides its file.

#include <CLI/CLI.hpp>
#include <functional>

#include "mlx_flash/status.h"

namespace mlx_flash {

// Runs a parsed command; the process's exit code, or why there is none.
using CommandFn = std::function<Result<int>()>;

// Each declares its options on `app` and returns what runs it. The function
// owns the values of the options and outlives the parse.
CommandFn add_run(CLI::App& app);
CommandFn add_chat(CLI::App& app);
CommandFn add_score(CLI::App& app);
CommandFn add_plan(CLI::App& app);
CommandFn add_bench(CLI::App& app);
CommandFn add_tokenize(CLI::App& app);
CommandFn add_template(CLI::App& app);
CommandFn add_inspect(CLI::App& app);
CommandFn add_pull(CLI::App& app);
CommandFn add_models(CLI::App& app);
CommandFn add_rm(CLI::App& app);

}  // namespace mlx_flash
