// SPDX-License-Identifier: MIT
#pragma once

// Unigram: of all ways to write a word as tokens, the one with the highest sum
// of scores (Viterbi; the later candidate wins only if it is strictly better,
// as in Hugging Face's encode_optimized and SentencePiece's EncodeOptimized).
// Sums are doubles. Immutable; safe to use from any thread.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/prefix_index.h"
#include "text/vocab.h"

namespace mlx_flash {

struct UnigramOptions {
  std::optional<int32_t> unk_id;
  bool byte_fallback = false;
};

class UnigramModel {
 public:
  struct Node {  // the best way to a byte offset
    double score = 0;
    uint32_t start = UINT32_MAX;  // of its last token; UINT32_MAX: no way
    int32_t id = 0;
  };

  // `usable`: tokens that may occur in a text (all if empty).
  static Result<UnigramModel> create(Vocab vocab,
                                     std::vector<double> scores,
                                     const std::vector<bool>& usable,
                                     UnigramOptions options);

  const Vocab& vocab() const { return vocab_; }

  // Appends the ids of a word (valid UTF-8). Fails where a character has no
  // token and the model no unknown token.
  Status encode_word(std::string_view word,
                     std::vector<Node>& scratch,
                     std::vector<int32_t>& ids) const;

  size_t memory_bytes() const {
    return vocab_.memory_bytes() + index_.memory_bytes() +
           scores_.capacity() * sizeof(double);
  }

 private:
  UnigramModel() = default;
  Status find_best(std::string_view word, std::vector<Node>& nodes) const;
  void append_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  Vocab vocab_;
  std::vector<double> scores_;
  PrefixIndex index_;
  UnigramOptions options_;
  double unk_score_ = 0;
  std::array<int32_t, 256> byte_ids_{};  // of <0xNN>
};

}  // namespace mlx_flash
