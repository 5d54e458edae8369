// SPDX-License-Identifier: MIT
#pragma once

// The whole command line: from arguments to an exit code.

#include <string>
#include <vector>

namespace mlx_flash {

// What the process does. `args`: without the program's name. Prints errors
// itself.
int main_command(std::vector<std::string> args);

// `args` with a command in front: the one that is there already (options may
// stand before it), else `run` where a prompt is given or stdin is not a
// terminal, else `chat`. --help, --version and words that are no command are
// left alone.
std::vector<std::string> with_command(std::vector<std::string> args,
                                      bool stdin_terminal);

}  // namespace mlx_flash
