// SPDX-License-Identifier: MIT

// A tokenizer from GGUF metadata: "gpt2" is byte-level BPE with merges, "llama"
// SentencePiece BPE by scores, "t5" SentencePiece Unigram.

#include <fmt/format.h>

#include "base/log.h"
#include "base/quote.h"
#include "text/gguf_pre_tokenizers.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

Status check_sizes(const GgufVocab& v) {
  if (v.tokens.empty()) {
    return invalid_input("tokenizer.ggml.tokens: there are no tokens");
  }
  const auto check = [&](const char* key, size_t size) {
    if (size == 0 || size == v.tokens.size()) return Status();
    return invalid_input(fmt::format(
        "{}: {} entries for {} tokens", key, size, v.tokens.size()));
  };
  FLASH_RETURN_IF_ERROR(check("tokenizer.ggml.scores", v.scores.size()));
  FLASH_RETURN_IF_ERROR(check("tokenizer.ggml.token_type", v.types.size()));
  for (size_t i = 0; i < v.types.size(); ++i) {
    if (v.types[i] >= 0 && v.types[i] <= 6) continue;
    return invalid_input(fmt::format(
        "tokenizer.ggml.token_type: entry {} is {}", i, v.types[i]));
  }
  return Status();
}

PieceType type_of(const GgufVocab& v, size_t i) {
  if (v.types.empty() || v.types[i] == 0) return PieceType::kNormal;
  return static_cast<PieceType>(v.types[i]);
}

std::optional<int32_t> id_of(std::optional<uint32_t> id, const GgufVocab& v) {
  if (!id || *id >= v.tokens.size()) return std::nullopt;
  return static_cast<int32_t>(*id);
}

Status add_merges(const GgufVocab& v,
                  const Vocab& vocab,
                  std::vector<MergePair>& pairs) {
  pairs.reserve(v.merges.size());
  for (size_t i = 0; i < v.merges.size(); ++i) {
    const std::string_view text = v.merges[i];
    const size_t space = text.find(' ', 1);
    if (space == std::string_view::npos || space + 1 == text.size()) {
      return invalid_input(
          fmt::format("tokenizer.ggml.merges: entry {} is not two tokens with "
                      "a space between: {}",
                      i,
                      quote(text)));
    }
    const MergePair pair{vocab.find(text.substr(0, space)),
                         vocab.find(text.substr(space + 1))};
    if (pair.left == Vocab::kNone || pair.right == Vocab::kNone) {
      return invalid_input(
          fmt::format("tokenizer.ggml.merges: entry {} names a token that is "
                      "not in the vocabulary: {}",
                      i,
                      quote(text)));
    }
    pairs.push_back(pair);
  }
  return Status();
}

Result<const GgufPreTokenizer*> find_pre(const GgufVocab& v) {
  std::string_view name = v.pre;
  if (name.empty()) {
    log_warning(
        "the GGUF file has no tokenizer.ggml.pre; taking 'default', which may "
        "cut the text in other places than the model was trained with");
    name = "default";
  }
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(name);
  if (pre == nullptr) {
    return unsupported(
        fmt::format("tokenizer.ggml.pre: {} is not known here", quote(name)));
  }
  return pre;
}

Result<TokenizerParts> convert_gpt2(const GgufVocab& v) {
  FLASH_ASSIGN_OR_RETURN(const GgufPreTokenizer* pre, find_pre(v));
  TokenizerParts parts;
  VocabBuilder builder;
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    const std::string_view text = v.tokens[i];
    if (find_invalid_utf8(text) != std::string_view::npos) {
      return invalid_input(
          fmt::format("tokenizer.ggml.tokens: entry {} is not valid UTF-8: {}",
                      i,
                      quote(text)));
    }
    FLASH_RETURN_IF_ERROR(builder.add(text, static_cast<int64_t>(i)));
    const PieceType type = type_of(v, i);
    const bool cut = type == PieceType::kControl ||
                     type == PieceType::kUserDefined ||
                     type == PieceType::kUnknown;
    if (!cut || text.empty()) continue;
    AddedToken token;
    token.id = static_cast<int32_t>(i);
    token.normalized = false;
    token.special = type != PieceType::kUserDefined;
    FLASH_RETURN_IF_ERROR(parts.added.add(text, token));
  }
  FLASH_ASSIGN_OR_RETURN(Vocab vocab, std::move(builder).build(true));
  std::vector<MergePair> pairs;
  FLASH_RETURN_IF_ERROR(add_merges(v, vocab, pairs));
  BpeOptions options;
  options.ignore_merges = pre->ignore_merges;
  FLASH_ASSIGN_OR_RETURN(
      parts.bpe, BpeModel::create(std::move(vocab), pairs, std::move(options)));
  if (pre->nfc) {
    FLASH_ASSIGN_OR_RETURN(parts.normalizer,
                           make_normalizer({{"type", "NFC"}}, "normalizer"));
  }
  FLASH_ASSIGN_OR_RETURN(parts.pre_tokenizer,
                         make_regex_pre_tokenizer(pre->patterns));
  parts.decoder = DecoderChain::byte_level();
  const auto bos = id_of(v.bos_id, v);
  const auto eos = id_of(v.eos_id, v);
  if (v.add_bos.value_or(pre->add_bos) && bos) parts.before.push_back(*bos);
  if (v.add_eos.value_or(false) && eos) parts.after.push_back(*eos);
  return parts;
}

Result<TokenizerParts> convert_sentencepiece(const GgufVocab& v, bool bpe) {
  if (v.scores.empty()) {
    return invalid_input("tokenizer.ggml.scores is missing");
  }
  SentencePieceData data;
  data.bpe = bpe;
  data.pieces = v.tokens;
  data.scores = v.scores;
  data.types.reserve(v.tokens.size());
  for (size_t i = 0; i < v.tokens.size(); ++i) {
    data.types.push_back(type_of(v, i));
  }
  data.rules.charsmap = v.precompiled_charsmap;
  data.rules.add_dummy_prefix = v.add_space_prefix.value_or(true);
  data.rules.remove_extra_whitespaces =
      !bpe && v.remove_extra_whitespaces.value_or(false);
  data.unk_id = id_of(v.unk_id, v);
  FLASH_ASSIGN_OR_RETURN(TokenizerParts parts,
                         build_sentencepiece(std::move(data)));
  const auto bos = id_of(v.bos_id, v);
  const auto eos = id_of(v.eos_id, v);
  if (v.add_bos.value_or(bpe) && bos) parts.before.push_back(*bos);
  if (v.add_eos.value_or(!bpe) && eos) parts.after.push_back(*eos);
  return parts;
}

}  // namespace

Result<TokenizerParts> convert_gguf_vocab(const GgufVocab& v) {
  FLASH_RETURN_IF_ERROR(check_sizes(v));
  if (v.model != "gpt2" && v.model != "llama" && v.model != "t5") {
    return unsupported(
        fmt::format("tokenizer.ggml.model: {} (gpt2, llama and t5 are "
                    "supported)",
                    quote(v.model)));
  }
  FLASH_ASSIGN_OR_RETURN(TokenizerParts parts,
                         v.model == "gpt2"
                             ? convert_gpt2(v)
                             : convert_sentencepiece(v, v.model == "llama"));
  const std::pair<const char*, std::optional<uint32_t>> special[] = {
      {"bos_token", v.bos_id},
      {"eos_token", v.eos_id},
      {"unk_token", v.unk_id},
      {"sep_token", v.sep_id},
      {"pad_token", v.pad_id},
  };
  for (const auto& [name, id] : special) {
    const auto known = id_of(id, v);
    if (!known) continue;
    parts.set_special_token(name, v.tokens[static_cast<size_t>(*known)]);
  }
  parts.bos_id = id_of(v.bos_id, v);
  for (const auto id : {v.eos_id, v.eot_id, v.eom_id}) {
    if (const auto known = id_of(id, v)) parts.eos_ids.push_back(*known);
  }
  parts.chat_template = v.chat_template;
  return parts;
}

}  // namespace mlx_flash
