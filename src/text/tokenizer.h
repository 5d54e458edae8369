// SPDX-License-Identifier: MIT
#pragma once

// Text to token ids and back, for every tokenizer that models in the field
// come with. Ids equal those of Hugging Face's `tokenizers`.
//
// Sources: a Hugging Face folder (tokenizer.json, else a SentencePiece or
// tiktoken tokenizer.model), or the metadata of a GGUF file. All become the
// same pipeline: added tokens are cut out of the text, the rest is normalised,
// cut into words and encoded by a BPE or Unigram model; decoding is a chain of
// steps (decoder.h).
//
// Immutable; safe to use from any thread. See detokenizer.h for streams.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/gguf_vocab.h"
#include "base/status.h"
#include "text/decoder.h"

namespace mlx_flash {

struct TokenizerParts;  // tokenizer_parts.h

class Tokenizer {
 public:
  // A folder with tokenizer.json or tokenizer.model; tokenizer_config.json,
  // special_tokens_map.json, generation_config.json, config.json and
  // chat_template.jinja are used where they exist.
  static Result<std::unique_ptr<Tokenizer>> from_folder(const std::string& dir);

  // One tokenizer.json, SentencePiece or tiktoken file, by its contents.
  static Result<std::unique_ptr<Tokenizer>> from_file(const std::string& path);
  // The contents of one. `name` is for messages.
  static Result<std::unique_ptr<Tokenizer>> from_bytes(std::string_view bytes,
                                                       const std::string& name);

  static Result<std::unique_ptr<Tokenizer>> from_gguf(const GgufVocab& vocab);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The ids of a text; with `add_special`, those that the tokenizer puts
  // around it too (as a rule a BOS in front). Added tokens inside of the text
  // are recognised in both cases. Text that is not UTF-8 is refused with the
  // offset of the first bad byte. Time is near-linear in the text.
  Result<std::vector<int32_t>> encode(std::string_view text,
                                      bool add_special) const;

  // The text of ids, valid UTF-8 (broken bytes are U+FFFD). Ids that name no
  // token are left out, special tokens too if `skip_special`.
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  // Highest id + 1. Ids below it may be unused.
  size_t vocab_size() const;

  // As the file writes the token ("Ġhello", "<0x0A>").
  std::optional<int32_t> token_to_id(std::string_view token) const;
  std::optional<std::string_view> id_to_token(int32_t id) const;
  bool is_special(int32_t id) const;

  std::optional<int32_t> bos_id() const;
  // Ids that end an answer; empty if nothing says so.
  const std::vector<int32_t>& eos_ids() const;

  // Text of "bos_token", "eos_token", "unk_token", "pad_token", ...; empty if
  // there is none.
  std::string_view special_token(std::string_view name) const;
  // All of them, as (name, text), for templates.
  const std::vector<std::pair<std::string, std::string>>& special_tokens()
      const;

  // Jinja source; empty if there is none.
  const std::string& chat_template() const;

  const DecoderChain& decoder() const;

  // Heap bytes held by the tables, near enough.
  size_t memory_bytes() const;

 private:
  class Encoding;  // one encode call
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  static Result<std::unique_ptr<Tokenizer>> assemble(TokenizerParts parts);

  std::unique_ptr<const TokenizerParts> parts_;
};

}  // namespace mlx_flash
