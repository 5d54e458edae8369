// SPDX-License-Identifier: MIT
#include <span>

#include "checkpoint/builder.h"
#include "checkpoint/testing/model_files.h"
#include "fuzz_target.h"

namespace mlx_flash {
namespace {

void open_all(std::span<const std::byte> bytes) {
  const MemorySource source("fuzz", bytes);
  auto entries = read_safetensors_header(source);
  if (!entries.ok()) return;
  for (const SafetensorsEntry& entry : *entries) {
    FLASH_CHECK(entry.offset + entry.bytes <= bytes.size());
  }
  CheckpointBuilder builder("fuzz");
  builder.add("fuzz", std::move(entries).value());
  Json config = {{"quantization", {{"bits", 4}, {"group_size", 64}}}};
  const auto checkpoint = builder.finish(std::move(config), false);
  if (!checkpoint.ok()) return;
  for (const Tensor& tensor : checkpoint->tensors()) {
    if (!tensor.name.ends_with(".weight") || tensor.shape.size() != 2) continue;
    const std::string path = tensor.name.substr(0, tensor.name.size() - 7);
    for (const uint64_t scale : {1U, 4U, 8U}) {
      const auto matrix =
          checkpoint->matrix(path, tensor.shape[0], tensor.shape[1] * scale);
      if (!matrix.ok()) continue;
      const auto row = row_bytes(matrix->format, matrix->cols);
      FLASH_CHECK(matrix->weight.bytes == row.weight * matrix->rows);
      FLASH_CHECK(matrix->scales.bytes == row.scales * matrix->rows);
      FLASH_CHECK(matrix->biases.bytes == row.biases * matrix->rows);
    }
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
  return {safetensors_bytes(tiny_llama_tensors()),
          safetensors_bytes({zeros("m.weight", "U32", {2, 8}),
                             zeros("m.scales", "BF16", {2, 1}),
                             zeros("m.biases", "BF16", {2, 1}),
                             zeros("d.weight", "F64", {2, 2})}),
          safetensors_bytes({})};
}
