// SPDX-License-Identifier: MIT
#pragma once

// What happens to a text before it is cut: Unicode normal forms, replacements,
// SentencePiece's character map. Follows Hugging Face's tokenizers; the steps
// are those of tokenizer.json's "normalizer".
//
// Immutable; safe to use from any thread.

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/status.h"

namespace mlx_flash {

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // Rewrites `text`, which is and stays valid UTF-8.
  virtual Status apply(std::string& text) const = 0;
  virtual size_t memory_bytes() const { return 0; }
};

// From tokenizer.json; null gives null. `where` names the place in messages.
Result<std::unique_ptr<Normalizer>> make_normalizer(
    const nlohmann::json& description, const std::string& where);

// SentencePiece's own order of things (sentencepiece normalizer.cc), for its
// model files and GGUF's.
struct SentencePieceRules {
  std::string charsmap;  // precompiled_charsmap, empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;
  bool escape_whitespaces = true;  // ' ' becomes U+2581
};
Result<std::unique_ptr<Normalizer>> make_sentencepiece_normalizer(
    SentencePieceRules rules);

}  // namespace mlx_flash
