// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>
#include <vector>

namespace mlx_flash {

// What a name in GGUF's tokenizer.ggml.pre stands for.
struct GgufPreTokenizer {
  std::vector<std::string_view> patterns;  // applied one after the other
  bool ignore_merges = false;
  bool add_bos = false;  // where the file does not say
  bool nfc = false;      // the model's own tokenizer normalises
};

// Null if the name is unknown. The result lives for ever.
const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name);

}  // namespace mlx_flash
