// SPDX-License-Identifier: MIT
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "cli/console.h"
#include "cli/main_command.h"

int main(int argc, char** argv) {
  try {
    return mlx_flash::main_command(
        std::vector<std::string>(argv + (argc > 0 ? 1 : 0), argv + argc));
  } catch (const std::bad_alloc&) {
    mlx_flash::print_error(mlx_flash::exhausted(
        "out of memory: lower --ram or --ctx, or free some memory"));
  } catch (const std::exception& error) {
    mlx_flash::print_error(mlx_flash::internal_error(error.what()));
  }
  return 1;
}
