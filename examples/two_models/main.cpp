// SPDX-License-Identifier: MIT

// Two models in one process tell a story in turns.
//
//   two_models MODEL_A MODEL_B [MEGABYTES]
//
// A budget is a promise about the whole process. What the process holds when
// an engine opens counts towards that engine's budget, so the first gets half
// and the second all of it.

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "mlx_flash/engine.h"

namespace {

// A model and what it has read and said.
struct Teller {
  std::string name;
  std::unique_ptr<mlx_flash::Engine> engine;
  std::unique_ptr<mlx_flash::Session> session;
};

mlx_flash::Result<Teller> open(const std::string& model, uint64_t ram_bytes) {
  FLASH_ASSIGN_OR_RETURN(
      auto engine,
      mlx_flash::Engine::open({.model = model, .ram_bytes = ram_bytes}));
  auto session = engine->new_session();
  return Teller{model, std::move(engine), std::move(session)};
}

// Reads what was said since this teller's last turn, and goes on from there.
mlx_flash::Result<std::string> tell(Teller& teller, const std::string& news) {
  const bool first = teller.session->position() == 0;
  FLASH_ASSIGN_OR_RETURN(const auto ids,
                         teller.engine->text().encode(news, first));
  std::string text;
  auto generation = teller.session->generate(ids, {.max_tokens = 24});
  for (const mlx_flash::Piece& piece : generation) {
    std::cout << piece.text << std::flush;
    text += piece.text;
  }
  FLASH_RETURN_IF_ERROR(generation.status());
  return text;
}

mlx_flash::Status run(const std::string& a,
                      const std::string& b,
                      uint64_t ram_bytes) {
  std::vector<Teller> tellers;
  for (const std::string& model : {a, b}) {
    const uint64_t share = tellers.empty() ? ram_bytes / 2 : ram_bytes;
    FLASH_ASSIGN_OR_RETURN(Teller teller, open(model, share));
    tellers.push_back(std::move(teller));
  }
  std::string news = "Once upon a time";
  std::cout << news;
  for (int turn = 0; turn < 4; ++turn) {
    Teller& teller = tellers[static_cast<size_t>(turn) % 2];
    std::string before = news;
    FLASH_ASSIGN_OR_RETURN(const std::string said, tell(teller, before));
    // The other one hears the opening as well the first time.
    news = turn == 0 ? before + said : said;
    std::cout << " / ";
  }
  std::cout << '\n';
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: two_models MODEL_A MODEL_B [MEGABYTES]\n";
    return 2;
  }
  const uint64_t megabytes = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
  const mlx_flash::Status status = run(argv[1], argv[2], megabytes * 1'000'000);
  if (!status.ok()) std::cerr << status.message() << '\n';
  return mlx_flash::exit_code(status);
}
