// SPDX-License-Identifier: MIT

// What a tokenizer costs: time and memory to load it, speed of encoding.
//
//   text_bench MODEL TEXT_FILE [--runs N]
//
// MODEL: a folder with tokenizer files, or a .gguf file. One line of JSON:
// load_ms, peak_mb and kept_mb (resident bytes above what the process had
// before, 1e6), encode_mb_s (median of the runs), tokens, runs.
// bench/tokenizers.py puts the figures beside those of Hugging Face's library.

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "mlx_flash/text.h"

namespace mlx_flash {
namespace {

double megabytes(uint64_t now, uint64_t before) {
  return (static_cast<double>(now) - static_cast<double>(before)) / 1e6;
}

Status bench(const std::string& model, const std::string& path, int runs) {
  FLASH_ASSIGN_OR_RETURN(const ProcessMemory before, process_memory());
  const double start_s = now_seconds();
  FLASH_ASSIGN_OR_RETURN(const auto text, Text::open(model));
  const double load_s = now_seconds() - start_s;
  FLASH_ASSIGN_OR_RETURN(const ProcessMemory loaded, process_memory());

  FLASH_ASSIGN_OR_RETURN(const std::string input,
                         read_whole_file(path, size_t{1} << 30));
  std::vector<double> seconds;
  size_t tokens = 0;
  for (int i = 0; i < runs; ++i) {
    const double begin_s = now_seconds();
    FLASH_ASSIGN_OR_RETURN(const auto ids, text->encode(input, false));
    seconds.push_back(now_seconds() - begin_s);
    tokens = ids.size();
  }
  std::sort(seconds.begin(), seconds.end());
  fmt::print(
      "{{\"load_ms\": {:.1f}, \"peak_mb\": {:.1f}, \"kept_mb\": {:.1f}, "
      "\"encode_mb_s\": {:.2f}, \"tokens\": {}, \"runs\": {}}}\n",
      load_s * 1e3,
      megabytes(loaded.resident_peak_bytes, before.resident_bytes),
      megabytes(loaded.resident_bytes, before.resident_bytes),
      static_cast<double>(input.size()) / 1e6 / seconds[seconds.size() / 2],
      tokens,
      runs);
  return Status();
}

}  // namespace
}  // namespace mlx_flash

int main(int argc, char** argv) {
  const bool counted = argc == 5 && std::strcmp(argv[3], "--runs") == 0;
  if (argc != 3 && !counted) {
    fmt::print(stderr, "usage: text_bench MODEL TEXT_FILE [--runs N]\n");
    return 2;
  }
  const int runs = counted ? std::max(1, std::atoi(argv[4])) : 5;
  const mlx_flash::Status status = mlx_flash::bench(argv[1], argv[2], runs);
  if (status.ok()) return 0;
  fmt::print(stderr, "text_bench: {}\n", status.message());
  return 1;
}
