// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include "checkpoint/gguf.h"

namespace mlx_flash {
namespace {

struct IdKey {
  std::string_view key;
  std::optional<uint32_t> GgufVocab::*member;
};
constexpr IdKey kIds[] = {
    {"tokenizer.ggml.bos_token_id", &GgufVocab::bos_id},
    {"tokenizer.ggml.eos_token_id", &GgufVocab::eos_id},
    {"tokenizer.ggml.eot_token_id", &GgufVocab::eot_id},
    {"tokenizer.ggml.eom_token_id", &GgufVocab::eom_id},
    {"tokenizer.ggml.unknown_token_id", &GgufVocab::unk_id},
    // The format's own spelling, and the right one.
    {"tokenizer.ggml.seperator_token_id", &GgufVocab::sep_id},
    {"tokenizer.ggml.separator_token_id", &GgufVocab::sep_id},
    {"tokenizer.ggml.padding_token_id", &GgufVocab::pad_id},
};

struct FlagKey {
  std::string_view key;
  std::optional<bool> GgufVocab::*member;
};
constexpr FlagKey kFlags[] = {
    {"tokenizer.ggml.add_bos_token", &GgufVocab::add_bos},
    {"tokenizer.ggml.add_eos_token", &GgufVocab::add_eos},
    {"tokenizer.ggml.add_space_prefix", &GgufVocab::add_space_prefix},
    {"tokenizer.ggml.remove_extra_whitespaces",
     &GgufVocab::remove_extra_whitespaces},
};

struct TextKey {
  std::string_view key;
  std::string GgufVocab::*member;
};
constexpr TextKey kTexts[] = {
    {"tokenizer.ggml.model", &GgufVocab::model},
    {"tokenizer.ggml.pre", &GgufVocab::pre},
    {"tokenizer.chat_template", &GgufVocab::chat_template},
};

Status check_count(const GgufFile& file,
                   std::string_view key,
                   size_t count,
                   size_t tokens) {
  if (count == 0 || count == tokens) return {};
  return invalid_input(
      fmt::format("{}: metadata '{}' has {} elements for {} tokens",
                  file.name(),
                  key,
                  count,
                  tokens));
}

Status read_charsmap(const GgufFile& file, GgufVocab& vocab) {
  constexpr std::string_view kKey = "tokenizer.ggml.precompiled_charsmap";
  const GgufMetadata* entry = file.find(kKey);
  if (entry == nullptr) return {};
  if (entry->type != GgufType::kArray ||
      (entry->element != GgufType::kU8 && entry->element != GgufType::kI8) ||
      entry->bytes > (uint64_t{16} << 20)) {
    return invalid_input(fmt::format(
        "{}: metadata '{}' is not an array of bytes", file.name(), kKey));
  }
  vocab.precompiled_charsmap.resize(static_cast<size_t>(entry->bytes));
  return file.read(
      entry->offset,
      std::as_writable_bytes(std::span(vocab.precompiled_charsmap)));
}

}  // namespace

Result<GgufVocab> read_gguf_vocab(const GgufFile& file) {
  GgufVocab vocab;
  for (const TextKey& row : kTexts) {
    FLASH_ASSIGN_OR_RETURN(auto text, file.string(row.key));
    if (text) vocab.*row.member = std::move(*text);
  }
  FLASH_ASSIGN_OR_RETURN(vocab.tokens, file.strings("tokenizer.ggml.tokens"));
  if (vocab.tokens.empty() || vocab.model.empty()) {
    return invalid_input(fmt::format(
        "{}: no tokenizer in the metadata (tokenizer.ggml.model and .tokens)",
        file.name()));
  }
  const size_t tokens = vocab.tokens.size();

  constexpr std::string_view kScores = "tokenizer.ggml.scores";
  FLASH_ASSIGN_OR_RETURN(vocab.scores, file.floats(kScores));
  FLASH_RETURN_IF_ERROR(
      check_count(file, kScores, vocab.scores.size(), tokens));

  constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
  FLASH_ASSIGN_OR_RETURN(const auto types, file.integers(kTypes));
  FLASH_RETURN_IF_ERROR(check_count(file, kTypes, types.size(), tokens));
  vocab.types.reserve(types.size());
  for (const int64_t type : types) {
    vocab.types.push_back(type >= 0 && type < 256 ? static_cast<int32_t>(type)
                                                  : 0);
  }

  FLASH_ASSIGN_OR_RETURN(vocab.merges, file.strings("tokenizer.ggml.merges"));
  for (const IdKey& row : kIds) {
    FLASH_ASSIGN_OR_RETURN(const auto id, file.unsigned_integer(row.key));
    if (id && *id < tokens) vocab.*row.member = static_cast<uint32_t>(*id);
  }
  for (const FlagKey& row : kFlags) {
    FLASH_ASSIGN_OR_RETURN(const auto flag, file.boolean(row.key));
    if (flag) vocab.*row.member = *flag;
  }
  FLASH_RETURN_IF_ERROR(read_charsmap(file, vocab));
  return vocab;
}

Result<GgufVocab> read_gguf_vocab(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(const auto file, GgufFile::open(path));
  return read_gguf_vocab(file);
}

}  // namespace mlx_flash
