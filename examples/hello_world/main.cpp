// SPDX-License-Identifier: MIT

// The smallest program: a model continues a text within a memory budget.
//
//   hello_world model.gguf "Once upon a time" [MEGABYTES]

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>

#include "mlx_flash/engine.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: hello_world MODEL TEXT [MEGABYTES]\n";
    return 2;
  }
  mlx_flash::Config config;
  config.model = argv[1];
  if (argc > 3) {
    config.ram_bytes = std::strtoull(argv[3], nullptr, 10) * 1'000'000;
  }

  // Errors are values: a message that says what, where, what to do.
  auto engine = mlx_flash::Engine::open(config);
  if (!engine.ok()) {
    std::cerr << engine.status().message() << '\n';
    return mlx_flash::exit_code(engine.status());
  }
  auto ids = engine.value()->text().encode(argv[2], true);
  if (!ids.ok()) {
    std::cerr << ids.status().message() << '\n';
    return mlx_flash::exit_code(ids.status());
  }

  auto session = engine.value()->new_session();
  auto generation = session->generate(*ids, {.max_tokens = 64});
  std::cout << argv[2];
  for (const mlx_flash::Piece& piece : generation) {
    std::cout << piece.text << std::flush;
  }
  std::cout << '\n';
  if (!generation.status().ok()) {
    std::cerr << generation.status().message() << '\n';
    return mlx_flash::exit_code(generation.status());
  }
  std::cerr << generation.stats().decode_tok_s << " tok/s, "
            << engine.value()->plan().pinned_bytes << " of "
            << engine.value()->plan().pass_bytes << " bytes kept in memory\n";
  return 0;
}
