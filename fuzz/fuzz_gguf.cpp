// SPDX-License-Identifier: MIT
#include <memory>
#include <span>

#include "checkpoint/builder.h"
#include "checkpoint/gguf_names.h"
#include "checkpoint/testing/model_files.h"
#include "fuzz_target.h"

namespace mlx_flash {
namespace {

void open_all(std::span<const std::byte> bytes) {
  auto parsed = GgufFile::parse(std::make_unique<MemorySource>("fuzz", bytes));
  if (!parsed.ok()) return;
  const GgufFile file = std::move(parsed).value();
  for (const GgufTensor& tensor : file.tensors()) {
    FLASH_CHECK(tensor.offset + tensor.bytes <= bytes.size());
  }
  const auto vocab = read_gguf_vocab(file);
  if (vocab.ok()) {
    FLASH_CHECK(vocab->bos_id.value_or(0) < vocab->tokens.size());
  }
  auto config = gguf_config(std::span(&file, 1));
  if (!config.ok()) return;
  CheckpointBuilder builder("fuzz");
  builder.add(file, "fuzz");
  const auto checkpoint = builder.finish(std::move(config).value(), true);
  if (!checkpoint.ok()) return;
  for (const Tensor& tensor : checkpoint->tensors()) {
    if (!tensor.name.ends_with(".weight") || tensor.shape.size() != 2) continue;
    const std::string path = tensor.name.substr(0, tensor.name.size() - 7);
    const auto matrix =
        checkpoint->matrix(path, tensor.shape[0], tensor.shape[1]);
    if (!matrix.ok()) continue;
    FLASH_CHECK(matrix->weight.bytes ==
                matrix_bytes(matrix->format, matrix->rows, matrix->cols));
  }
}

}  // namespace
}  // namespace mlx_flash

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mlx_flash::open_all(std::as_bytes(std::span(data, size)));
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{1} << 20;
}

std::vector<std::string> fuzz_seeds() {
  using namespace mlx_flash::testing;
  auto rope = tiny_llama_gguf(0);
  rope.string("llama.rope.scaling.type", "yarn")
      .f32("llama.rope.scaling.factor", 4)
      .u32("llama.rope.dimension_count", 8)
      .u32("llama.attention.sliding_window_pattern", 1)
      .tensor("rope_freqs.weight", {4}, 0, std::string(16, '?'));
  return {tiny_llama_gguf(8).bytes(), rope.bytes(), GgufWriter().bytes()};
}
