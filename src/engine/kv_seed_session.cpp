// SPDX-License-Identifier: MIT

// Writes a session file of a long context without computing it: blocks of
// random keys and values from a fixed seed. What is measured with it is memory,
// reading and time; its answers mean nothing.
//
//   kv_seed_session MODEL FILE TOKENS BITS
//
// TOKENS times the id 1, BITS as --kv-quant; then
//   mlx-flash run --model MODEL --session FILE --prompt-ids 1,1,... --json

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "engine/core.h"
#include "kv/kv_saved.h"

namespace mlx_flash {
namespace {

constexpr size_t kBlock = kernels::kKvBlock;
constexpr size_t kKinds = 16;  // different blocks, over and over

std::vector<std::byte> random_block(const KvLayout& layout, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint16_t> halves(layout.full_bytes() / 2);
  for (uint16_t& half : halves) {
    const uint64_t bits = random();
    // Halves of either sign between 1/8 and 2.
    half =
        static_cast<uint16_t>((bits & 0x83FF) | (12 + (bits >> 20) % 4) << 10);
  }
  std::vector<std::byte> block(layout.full_bytes());
  std::memcpy(block.data(), halves.data(), block.size());
  return block;
}

std::vector<std::byte> old_block(const KvLayout& layout,
                                 const std::vector<std::byte>& full) {
  if (layout.quant_bits == 0) return full;
  std::vector<std::byte> old(layout.old_bytes());
  kernels::quantize_kv(full.data(),
                       layout.dtype,
                       layout.kv_heads,
                       layout.head_dim,
                       layout.quant_bits,
                       old.data());
  if (layout.values_in_keys) return old;
  kernels::quantize_kv(full.data() + kBlock * layout.key_row_bytes(),
                       layout.dtype,
                       layout.kv_heads,
                       layout.value_dim,
                       layout.quant_bits,
                       old.data() + layout.old_key_bytes());
  return old;
}

Status write(const std::string& model,
             const std::string& path,
             size_t tokens,
             int bits) {
  Config config;
  config.model = model;
  config.kernels = Kernels::kFast;
  config.context = 64;
  FLASH_ASSIGN_OR_RETURN(const auto core, Core::open(config));
  const KvLayout layout = core->model().kv_layout(DType::kF16, bits);
  SavedSession saved{.layout = saved_layout(layout),
                     .length = tokens,
                     .tokens = std::vector<int32_t>(tokens, 1)};
  FLASH_ASSIGN_OR_RETURN(saved.model, core->fingerprint());
  FLASH_ASSIGN_OR_RETURN(
      const auto writer,
      SessionWriter::create(
          path, saved, {.payload_bytes = saved_payload_bytes(layout)}));
  std::vector<std::vector<std::byte>> full;
  std::vector<std::vector<std::byte>> old;
  for (size_t i = 0; i < kKinds; ++i) {
    full.push_back(random_block(layout, i));
    old.push_back(old_block(layout, full.back()));
  }
  const auto put = [&](const KvVersion& version,
                       const std::vector<std::byte>& bytes) {
    std::memcpy(writer->payload(), bytes.data(), bytes.size());
    return writer->put(version, bytes.size());
  };
  const size_t tail =
      tokens > kKvRollback ? kv_old_blocks(tokens - kKvRollback) : 0;
  for (uint32_t layer = 0; layer < layout.layers; ++layer) {
    for (uint32_t b = 0; b < kv_old_blocks(tokens); ++b) {
      FLASH_RETURN_IF_ERROR(
          put({layer, b, true}, old[(layer * 5 + b) % kKinds]));
    }
    for (auto b = static_cast<uint32_t>(tail); b * kBlock < tokens; ++b) {
      FLASH_RETURN_IF_ERROR(
          put({layer, b, false}, full[(layer * 5 + b) % kKinds]));
    }
  }
  return writer->commit();
}

}  // namespace
}  // namespace mlx_flash

int main(int argc, char** argv) {
  const long tokens = argc == 5 ? std::atol(argv[3]) : 0;
  const int bits = argc == 5 ? std::atoi(argv[4]) : -1;
  if (tokens < 1 || (bits != 0 && bits != 4 && bits != 8)) {
    fmt::print(stderr, "kv_seed_session MODEL FILE TOKENS 0|4|8\n");
    return 2;
  }
  const mlx_flash::Status status =
      mlx_flash::write(argv[1], argv[2], static_cast<size_t>(tokens), bits);
  if (!status.ok()) fmt::print(stderr, "{}\n", status.message());
  return mlx_flash::exit_code(status);
}
