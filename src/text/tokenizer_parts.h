// SPDX-License-Identifier: MIT
#pragma once

// What a Tokenizer is made of, and the readers that make it. Internal to
// text/.

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/gguf_vocab.h"
#include "base/status.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/decoder.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/unigram.h"

namespace mlx_flash {

struct TokenizerParts {
  // One of the two.
  std::optional<BpeModel> bpe;
  std::optional<UnigramModel> unigram;

  AddedTokens added;                       // not yet prepared
  std::unique_ptr<Normalizer> normalizer;  // may be null
  PreTokenizerSteps pre_tokenizer;
  DecoderChain decoder;

  // Ids around a text that is encoded with add_special.
  std::vector<int32_t> before;
  std::vector<int32_t> after;

  std::vector<std::pair<std::string, std::string>> special_tokens;
  std::vector<int32_t> eos_ids;
  std::optional<int32_t> bos_id;
  std::string chat_template;

  const Vocab& vocab() const {
    return bpe.has_value() ? bpe->vocab() : unigram->vocab();
  }
  // By an added token's content, then by the model's vocabulary. REQUIRES:
  // added.prepare() was called.
  std::optional<int32_t> token_id(std::string_view token) const;
  std::string_view special_token(std::string_view name) const;
  void set_special_token(std::string_view name, std::string_view text);
};

// tokenizer_config.json and its neighbours.
struct TokenizerConfig {
  struct Added {
    std::string content;
    AddedToken token;
  };
  std::vector<std::pair<std::string, std::string>> special_tokens;
  std::vector<Added> added;  // added_tokens_decoder, if asked for
  std::vector<int32_t> eos_ids;
  std::string chat_template;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> legacy;
};
Result<TokenizerConfig> read_tokenizer_config(const std::string& dir,
                                              bool want_added);

Result<TokenizerParts> read_tokenizer_json(const std::string& path);
// The same from memory; `name` is for messages.
Result<TokenizerParts> parse_tokenizer_json(std::string_view text,
                                            const std::string& name);

// The contents of a tokenizer.model.
bool looks_like_sentencepiece(std::string_view bytes);
Result<TokenizerParts> parse_sentencepiece(std::string_view bytes,
                                           const std::string& name,
                                           const TokenizerConfig& config);
Result<TokenizerParts> parse_tiktoken(std::string_view text,
                                      const std::string& name,
                                      const TokenizerConfig& config);

Result<TokenizerParts> convert_gguf_vocab(const GgufVocab& vocab);

}  // namespace mlx_flash
