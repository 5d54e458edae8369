// SPDX-License-Identifier: MIT
#include "base/json.h"
#include "checkpoint/quantization.h"
#include "checkpoint/testing/model_files.h"
#include "fuzz_target.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mlx_flash;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  auto config = parse_json(text);
  if (!config.ok() || !config->is_object()) return 0;
  if (!normalize_quantization(*config).ok()) return 0;
  for (const char* path : {"m", "model.layers.0.mlp.gate"}) {
    const auto setting = listed_setting(*config, path);
    if (!setting.ok() || !*setting) continue;
    const auto format = setting_format(path, **setting, DType::kBF16);
    FLASH_CHECK(!format.ok() || format->bits <= 8);
  }
  return 0;
}

size_t fuzz_heap_bytes() {
  return size_t{1} << 20;
}

std::vector<std::string> fuzz_seeds() {
  return {mlx_flash::testing::tiny_llama_config(),
          R"({"quantization": {"bits": 4, "group_size": 64, "mode": "affine",
             "m": {"bits": 8, "mode": "mxfp8", "group_size": 32},
             "model.layers.0.mlp.gate": false}, "a": [1.5e3, "\u00e9", null]})",
          R"({"text_config": {"quantization_config":
             {"quant_method": "mxfp4"}}})",
          R"({"model_type": "deepseek_v3", "quantization_config":
             {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme":
             "dynamic", "weight_block_size": [128, 128]}})",
          "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"};
}
