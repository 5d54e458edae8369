// SPDX-License-Identifier: MIT
#pragma once

// The tokenizer of a GGUF file as its metadata has it (keys tokenizer.ggml.*,
// tokenizer.chat_template). checkpoint/ reads it, text/ builds a tokenizer from
// it, and neither knows the other. What the file does not say is empty.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/string_table.h"

namespace mlx_flash {

struct GgufVocab {
  std::string model;  // "gpt2", "llama", "t5", "bert", ...
  std::string pre;    // pre-tokenizer of BPE: "smollm", "llama-bpe", ...
  StringTable tokens;
  std::vector<float> scores;   // empty, or one for each token
  std::vector<int32_t> types;  // empty, or one for each token: 1 normal,
                               // 2 unknown, 3 control, 4 user defined,
                               // 5 unused, 6 byte
  StringTable merges;          // "left right", by rank

  // Below tokens.size(); an id that is not is left out (writers put 2^32 - 1
  // for "none").
  std::optional<uint32_t> bos_id;
  std::optional<uint32_t> eos_id;
  std::optional<uint32_t> eot_id;  // end of turn
  std::optional<uint32_t> eom_id;  // end of message
  std::optional<uint32_t> unk_id;
  std::optional<uint32_t> sep_id;
  std::optional<uint32_t> pad_id;

  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;

  std::string precompiled_charsmap;  // bytes of a SentencePiece normalizer
  std::string chat_template;         // Jinja
};

}  // namespace mlx_flash
