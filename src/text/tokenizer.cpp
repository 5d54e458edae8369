// SPDX-License-Identifier: MIT
#include "text/tokenizer.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>

#include "base/read_file.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

constexpr size_t kTextBytesMax = size_t{1} << 30;
constexpr size_t kModelFileBytesMax = 64 << 20;

bool exists(const std::string& path) {
  struct stat s {};
  return ::stat(path.c_str(), &s) == 0;
}

Result<TokenizerParts> parse_model(std::string_view bytes,
                                   const std::string& name,
                                   const TokenizerConfig& config) {
  return looks_like_sentencepiece(bytes)
             ? parse_sentencepiece(bytes, name, config)
             : parse_tiktoken(bytes, name, config);
}

Result<TokenizerParts> read_model_file(const std::string& path,
                                       const TokenizerConfig& config) {
  FLASH_ASSIGN_OR_RETURN(const std::string bytes,
                         read_whole_file(path, kModelFileBytesMax));
  return parse_model(bytes, path, config);
}

}  // namespace

std::optional<int32_t> TokenizerParts::token_id(std::string_view token) const {
  const int64_t index = added.find_content(token);
  if (index >= 0) return added.token(static_cast<size_t>(index)).id;
  const int32_t id = vocab().find(token);
  if (id == Vocab::kNone) return std::nullopt;
  return id;
}

std::string_view TokenizerParts::special_token(std::string_view name) const {
  for (const auto& [key, text] : special_tokens) {
    if (key == name) return text;
  }
  return {};
}

void TokenizerParts::set_special_token(std::string_view name,
                                       std::string_view text) {
  for (auto& [key, value] : special_tokens) {
    if (key == name) {
      value = text;
      return;
    }
  }
  special_tokens.emplace_back(name, text);
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts)
    : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::assemble(TokenizerParts parts) {
  auto owned = std::make_unique<TokenizerParts>(std::move(parts));
  FLASH_RETURN_IF_ERROR(owned->added.prepare(owned->normalizer.get()));
  if (!owned->bos_id && !owned->special_token("bos_token").empty()) {
    owned->bos_id = owned->token_id(owned->special_token("bos_token"));
  }
  if (owned->eos_ids.empty() && !owned->special_token("eos_token").empty()) {
    const auto eos = owned->token_id(owned->special_token("eos_token"));
    if (eos) owned->eos_ids.push_back(*eos);
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(owned)));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_folder(
    const std::string& dir) {
  const std::string json = dir + "/tokenizer.json";
  const std::string model = dir + "/tokenizer.model";
  const bool has_json = exists(json);
  if (!has_json && !exists(model)) {
    return invalid_input(fmt::format(
        "{}: there is neither tokenizer.json nor tokenizer.model", dir));
  }
  FLASH_ASSIGN_OR_RETURN(TokenizerConfig config,
                         read_tokenizer_config(dir, !has_json));
  FLASH_ASSIGN_OR_RETURN(
      TokenizerParts parts,
      has_json ? read_tokenizer_json(json) : read_model_file(model, config));
  for (const auto& [name, text] : config.special_tokens) {
    parts.set_special_token(name, text);
    // The config's word counts, not the model file's.
    if (name == "bos_token") parts.bos_id.reset();
    if (name == "eos_token") parts.eos_ids.clear();
  }
  if (!config.eos_ids.empty()) parts.eos_ids = std::move(config.eos_ids);
  parts.chat_template = std::move(config.chat_template);
  return assemble(std::move(parts));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_file(
    const std::string& path) {
  if (path.ends_with(".json")) {
    FLASH_ASSIGN_OR_RETURN(TokenizerParts parts, read_tokenizer_json(path));
    return assemble(std::move(parts));
  }
  FLASH_ASSIGN_OR_RETURN(TokenizerParts parts,
                         read_model_file(path, TokenizerConfig()));
  return assemble(std::move(parts));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_bytes(
    std::string_view bytes, const std::string& name) {
  const size_t begin = bytes.find_first_not_of(" \t\r\n");
  const bool json = begin != std::string_view::npos && bytes[begin] == '{';
  FLASH_ASSIGN_OR_RETURN(TokenizerParts parts,
                         json ? parse_tokenizer_json(bytes, name)
                              : parse_model(bytes, name, TokenizerConfig()));
  return assemble(std::move(parts));
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_gguf(
    const GgufVocab& vocab) {
  FLASH_ASSIGN_OR_RETURN(TokenizerParts parts, convert_gguf_vocab(vocab));
  return assemble(std::move(parts));
}

class Tokenizer::Encoding {
 public:
  Encoding(const TokenizerParts& parts,
           size_t text_bytes,
           std::vector<int32_t>& ids)
      : parts_(parts), scratch_(text_bytes), ids_(ids) {}

  // Added tokens that are looked for in the text as it is.
  Status whole_text(std::string_view text) {
    if (!parts_.added.any(false)) return segment(text, true);
    std::vector<AddedTokens::Part> cuts;
    parts_.added.split(text, false, cuts);
    for (const auto& cut : cuts) {
      if (cut.id >= 0) {
        ids_.push_back(cut.id);
        continue;
      }
      FLASH_RETURN_IF_ERROR(
          segment(text.substr(cut.begin, cut.end - cut.begin), cut.begin == 0));
    }
    return Status();
  }

 private:
  // Those that are looked for in the normalised text.
  Status segment(std::string_view text, bool at_start) {
    std::string normalized;
    if (parts_.normalizer != nullptr) {
      normalized.assign(text);
      FLASH_RETURN_IF_ERROR(parts_.normalizer->apply(normalized));
      text = normalized;
    }
    if (!parts_.added.any(true)) return piece(text, at_start);
    std::vector<AddedTokens::Part> cuts;
    parts_.added.split(text, true, cuts);
    for (const auto& cut : cuts) {
      if (cut.id >= 0) {
        ids_.push_back(cut.id);
        continue;
      }
      FLASH_RETURN_IF_ERROR(piece(text.substr(cut.begin, cut.end - cut.begin),
                                  at_start && cut.begin == 0));
    }
    return Status();
  }

  Status piece(std::string_view text, bool at_start) {
    if (text.empty()) return Status();
    PreTokens words;
    words.text = text;
    words.spans.push_back({0, static_cast<uint32_t>(text.size())});
    words.at_start = at_start;
    FLASH_RETURN_IF_ERROR(parts_.pre_tokenizer.apply(words));
    const bool raw = parts_.pre_tokenizer.raw_bytes;
    for (size_t i = 0; i < words.spans.size(); ++i) {
      if (parts_.bpe.has_value()) {
        parts_.bpe->encode_word(words[i], raw, scratch_, ids_);
      } else {
        FLASH_RETURN_IF_ERROR(
            parts_.unigram->encode_word(words[i], nodes_, ids_));
      }
    }
    return Status();
  }

  const TokenizerParts& parts_;
  BpeModel::Scratch scratch_;
  std::vector<UnigramModel::Node> nodes_;
  std::vector<int32_t>& ids_;
};

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text,
                                               bool add_special) const {
  if (text.size() > kTextBytesMax) {
    return invalid_input(fmt::format(
        "a text of {} bytes (the limit is {})", text.size(), kTextBytesMax));
  }
  const size_t broken = find_invalid_utf8(text);
  if (broken != std::string_view::npos) {
    return invalid_input(
        fmt::format("the text is not valid UTF-8: byte {} (0x{:02X})",
                    broken,
                    static_cast<unsigned char>(text[broken])));
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special) ids = parts_->before;
  Encoding encoding(*parts_, text.size(), ids);
  FLASH_RETURN_IF_ERROR(encoding.whole_text(text));
  if (add_special) {
    ids.insert(ids.end(), parts_->after.begin(), parts_->after.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids,
                              bool skip_special) const {
  std::string out;
  DecoderRun run(parts_->decoder);
  for (const int32_t id : ids) {
    const auto token = id_to_token(id);
    if (!token || (skip_special && is_special(id))) continue;
    run.push(*token, out);
  }
  run.finish(out);
  return out;
}

size_t Tokenizer::vocab_size() const {
  const auto added = static_cast<size_t>(parts_->added.highest_id()) + 1;
  return std::max(parts_->vocab().size(), added);
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  return parts_->token_id(token);
}

std::optional<std::string_view> Tokenizer::id_to_token(int32_t id) const {
  const int64_t index = parts_->added.find_id(id);
  if (index >= 0) return parts_->added.content(static_cast<size_t>(index));
  if (!parts_->vocab().has(id)) return std::nullopt;
  return parts_->vocab()[id];
}

bool Tokenizer::is_special(int32_t id) const {
  const int64_t index = parts_->added.find_id(id);
  return index >= 0 && parts_->added.token(static_cast<size_t>(index)).special;
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return parts_->bos_id;
}

const std::vector<int32_t>& Tokenizer::eos_ids() const {
  return parts_->eos_ids;
}

std::string_view Tokenizer::special_token(std::string_view name) const {
  return parts_->special_token(name);
}

const std::vector<std::pair<std::string, std::string>>&
Tokenizer::special_tokens() const {
  return parts_->special_tokens;
}

const std::string& Tokenizer::chat_template() const {
  return parts_->chat_template;
}

const DecoderChain& Tokenizer::decoder() const {
  return parts_->decoder;
}

size_t Tokenizer::memory_bytes() const {
  size_t bytes = sizeof(TokenizerParts) + parts_->added.memory_bytes() +
                 parts_->chat_template.capacity();
  if (parts_->bpe.has_value()) bytes += parts_->bpe->memory_bytes();
  if (parts_->unigram.has_value()) bytes += parts_->unigram->memory_bytes();
  if (parts_->normalizer != nullptr)
    bytes += parts_->normalizer->memory_bytes();
  return bytes;
}

}  // namespace mlx_flash
