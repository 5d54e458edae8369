// SPDX-License-Identifier: MIT
#pragma once

// A SentencePiece model as data, from its own file or from GGUF metadata, and
// the tokenizer made of it. Internal to text/.

#include <cstdint>
#include <optional>
#include <vector>

#include "base/status.h"
#include "base/string_table.h"
#include "text/tokenizer_parts.h"

namespace mlx_flash {

// Numbers as in sentencepiece_model.proto; GGUF uses the same.
enum class PieceType : uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct SentencePieceData {
  StringTable pieces;
  std::vector<float> scores;     // one for each piece
  std::vector<PieceType> types;  // one for each piece
  bool bpe = true;               // else Unigram
  SentencePieceRules rules;
  bool prefix_every_segment = true;  // else the dummy prefix only at the start
  std::optional<int32_t> unk_id;
};

// Model, added tokens (control and user-defined pieces), normalizer, decoder.
Result<TokenizerParts> build_sentencepiece(SentencePieceData data);

}  // namespace mlx_flash
