// SPDX-License-Identifier: MIT

// tiktoken's file: a line "base64-of-token rank" for each token. Ranks are ids
// and the order of merging; the file has neither expression nor special
// tokens, so that those come from tokenizer_config.json, or from what the
// number of tokens says.

#include <fmt/format.h>

#include "base/quote.h"
#include "text/base64.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/tokenizer_parts.h"

namespace mlx_flash {
namespace {

struct Family {
  int64_t tokens;
  std::string_view pre;  // name in gguf_pre_tokenizers.cpp
  bool llama3;
};
constexpr Family kFamilies[] = {
    {128000, "llama3", true},
    {151643, "qwen2", false},
    {199998, "gpt-4o", false},
    {163584, "kimi-k2", false},
};

// Llama 3 names 256 tokens after its 128,000 (models/llama3/tokenizer.py).
Status add_llama3_tokens(AddedTokens& added) {
  constexpr int kReserved = 256;
  const std::pair<int, std::string_view> named[] = {
      {0, "begin_of_text"},
      {1, "end_of_text"},
      {4, "finetune_right_pad_id"},
      {6, "start_header_id"},
      {7, "end_header_id"},
      {8, "eom_id"},
      {9, "eot_id"},
      {10, "python_tag"},
  };
  int reserved = 0;
  for (int i = 0; i < kReserved; ++i) {
    std::string content;
    for (const auto& [at, name] : named) {
      if (at == i) content = fmt::format("<|{}|>", name);
    }
    if (content.empty()) {
      content = fmt::format("<|reserved_special_token_{}|>", reserved++);
    }
    AddedToken token;
    token.id = 128000 + i;
    token.special = true;
    token.normalized = false;
    FLASH_RETURN_IF_ERROR(added.add(content, token));
  }
  return Status();
}

Result<Vocab> read_ranks(std::string_view text, const std::string& name) {
  VocabBuilder builder;
  std::string bytes;
  std::string mapped;
  size_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    ++line_number;
    const size_t newline = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, newline - at);
    at = newline + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const size_t space = line.find(' ');
    int64_t rank = -1;
    if (space != std::string_view::npos && line.size() - space - 1 <= 9) {
      rank = space + 1 == line.size() ? -1 : 0;
      for (const char c : line.substr(space + 1)) {
        if (c < '0' || c > '9') rank = -1;
        if (rank >= 0) rank = rank * 10 + (c - '0');
      }
    }
    if (rank < 0 || !decode_base64(line.substr(0, space), bytes) ||
        bytes.empty()) {
      return invalid_input(
          fmt::format("{}: line {}: a base64 token and its rank are due, not "
                      "{}",
                      name,
                      line_number,
                      quote(line, 40)));
    }
    mapped.clear();
    append_byte_level(mapped, bytes);
    const Status status = builder.add(mapped, rank);
    if (!status.ok()) {
      return status.at(fmt::format("{}: line {}", name, line_number));
    }
  }
  Result<Vocab> vocab = std::move(builder).build(false);
  if (!vocab.ok()) return vocab.status().at(name);
  return vocab;
}

}  // namespace

Result<TokenizerParts> parse_tiktoken(std::string_view text,
                                      const std::string& name,
                                      const TokenizerConfig& config) {
  FLASH_ASSIGN_OR_RETURN(Vocab vocab, read_ranks(text, name));
  const auto count = static_cast<int64_t>(vocab.size());
  const Family* family = nullptr;
  for (const Family& f : kFamilies) {
    if (f.tokens == count) family = &f;
  }
  if (family == nullptr) {
    return unsupported(
        fmt::format("{}: a tiktoken file of {} tokens; those of Llama 3, Qwen, "
                    "o200k and Kimi are known. Use a folder with "
                    "tokenizer.json",
                    name,
                    count));
  }
  TokenizerParts parts;
  std::vector<uint32_t> rank(vocab.size());
  for (uint32_t i = 0; i < rank.size(); ++i) rank[i] = i;
  BpeOptions options;
  options.ignore_merges = true;  // a whole word is looked up first
  FLASH_ASSIGN_OR_RETURN(
      parts.bpe,
      BpeModel::create_ranked(std::move(vocab), rank, std::move(options)));
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(family->pre);
  FLASH_ASSIGN_OR_RETURN(parts.pre_tokenizer,
                         make_regex_pre_tokenizer(pre->patterns));
  parts.decoder = DecoderChain::byte_level();
  for (const TokenizerConfig::Added& added : config.added) {
    AddedToken token = added.token;
    token.normalized = false;
    FLASH_RETURN_IF_ERROR(parts.added.add(added.content, token));
  }
  if (config.added.empty() && family->llama3) {
    FLASH_RETURN_IF_ERROR(add_llama3_tokens(parts.added));
    parts.set_special_token("bos_token", "<|begin_of_text|>");
    parts.set_special_token("eos_token", "<|end_of_text|>");
  }
  if (family->llama3 && config.add_bos.value_or(true)) {
    parts.before.push_back(128000);
  }
  return parts;
}

}  // namespace mlx_flash
