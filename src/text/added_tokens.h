// SPDX-License-Identifier: MIT
#pragma once

// Tokens that are found in the text before the model sees it: control tokens
// such as <|im_start|>, and whatever else a tokenizer adds to its model's
// vocabulary. Semantics of Hugging Face's added_vocabulary.rs. Immutable once
// prepared; safe to use from any thread.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "base/string_table.h"
#include "text/normalizer.h"
#include "text/prefix_index.h"

namespace mlx_flash {

struct AddedToken {
  int32_t id = 0;
  bool special = false;      // left out by decode(skip_special)
  bool normalized = true;    // found in the normalised text
  bool left_strip = false;   // takes white space before it along
  bool right_strip = false;  // and after it
  bool single_word = false;  // not inside of a word
};

class AddedTokens {
 public:
  // A part of a text: an added token (id >= 0), or what is between them.
  struct Part {
    size_t begin;
    size_t end;
    int32_t id;
  };

  // Refuses empty and overlong contents and an id that another content has. A
  // content that comes twice keeps its first entry.
  Status add(std::string_view content, AddedToken token);

  // To be called once, after the last add().
  Status prepare(const Normalizer* normalizer);

  bool any(bool normalized) const { return side(normalized).any; }

  // Cuts `text` at the tokens of the one kind; parts are appended in order.
  void split(std::string_view text,
             bool normalized,
             std::vector<Part>& parts) const;

  size_t size() const { return tokens_.size(); }
  const AddedToken& token(size_t i) const { return tokens_[i]; }
  std::string_view content(size_t i) const { return contents_[i]; }

  // Index of the token with this id or content, or -1.
  int64_t find_id(int32_t id) const;
  int64_t find_content(std::string_view content) const;

  int32_t highest_id() const { return highest_id_; }
  size_t memory_bytes() const;

 private:
  struct Side {
    PrefixIndex index;  // into `patterns`
    StringTable patterns;
    std::vector<uint32_t> tokens;  // of each pattern
    bool any = false;
  };
  const Side& side(bool normalized) const {
    return normalized ? normalized_ : raw_;
  }

  StringTable contents_;
  std::vector<AddedToken> tokens_;
  std::vector<uint32_t> by_id_;       // indices, sorted by id
  std::vector<uint32_t> by_content_;  // indices, sorted by content
  Side raw_;
  Side normalized_;
  int32_t highest_id_ = -1;
};

}  // namespace mlx_flash
