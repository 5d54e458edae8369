// SPDX-License-Identifier: MIT
#include "text/sentencepiece.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/quote.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

// Reads protocol buffers' wire format from memory. Errors stick.
class ProtoReader {
 public:
  ProtoReader(std::string_view bytes, size_t base) : in_(bytes), base_(base) {}

  // The next field, or false at the end or after an error.
  bool next(uint32_t& field, uint32_t& wire) {
    if (at_ == in_.size() || failed_) return false;
    uint64_t tag;
    if (!varint(tag)) return false;
    field = static_cast<uint32_t>(tag >> 3);
    wire = static_cast<uint32_t>(tag & 7);
    return true;
  }
  bool varint(uint64_t& value) {
    value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (at_ == in_.size()) return fail();
      const auto b = static_cast<unsigned char>(in_[at_++]);
      value |= uint64_t{b & 0x7Fu} << shift;
      if (b < 0x80) return true;
    }
    return fail();
  }
  bool bytes(std::string_view& value) {
    uint64_t length;
    if (!varint(length)) return false;
    if (length > in_.size() - at_) return fail();
    value = in_.substr(at_, static_cast<size_t>(length));
    at_ += static_cast<size_t>(length);
    return true;
  }
  bool fixed32(uint32_t& value) {
    if (in_.size() - at_ < 4) return fail();
    std::memcpy(&value, in_.data() + at_, 4);
    at_ += 4;
    return true;
  }
  bool skip(uint32_t wire) {
    uint64_t number;
    uint32_t word;
    std::string_view text;
    switch (wire) {
      case 0:
        return varint(number);
      case 1:
        return fixed32(word) && fixed32(word);
      case 2:
        return bytes(text);
      case 5:
        return fixed32(word);
      default:
        return fail();
    }
  }
  bool fail() {
    failed_ = true;
    return false;
  }
  bool failed() const { return failed_; }
  size_t offset() const { return base_ + at_; }

 private:
  std::string_view in_;
  size_t base_;  // offset of in_ in the file
  size_t at_ = 0;
  bool failed_ = false;
};

struct ModelFile {
  SentencePieceData data;
  uint64_t model_type = 1;  // 1 unigram, 2 bpe, 3 word, 4 char
  bool suffix_space = false;
  std::optional<int32_t> bos_id = 1;
  std::optional<int32_t> eos_id = 2;
  std::optional<int32_t> pad_id;
};

std::optional<int32_t> id_of(uint64_t value) {
  if (value > static_cast<uint64_t>(kTokenIdMax)) return std::nullopt;  // -1
  return static_cast<int32_t>(value);
}

Status broken(const std::string& name, const ProtoReader& in) {
  return invalid_input(fmt::format(
      "{}: byte {}: not a SentencePiece model (broken protocol buffer)",
      name,
      in.offset()));
}

bool read_piece(ProtoReader& in, SentencePieceData& data) {
  std::string_view piece;
  float score = 0;
  uint64_t type = 1;
  for (uint32_t field, wire; in.next(field, wire);) {
    uint32_t bits;
    if (field == 1 && wire == 2) {
      in.bytes(piece);
    } else if (field == 2 && wire == 5) {
      if (in.fixed32(bits)) std::memcpy(&score, &bits, 4);
    } else if (field == 3 && wire == 0) {
      in.varint(type);
    } else {
      in.skip(wire);
    }
  }
  if (in.failed() || type < 1 || type > 6) return in.fail();
  data.pieces.push_back(piece);
  data.scores.push_back(score);
  data.types.push_back(static_cast<PieceType>(type));
  return true;
}

void read_trainer(ProtoReader& in, ModelFile& file) {
  for (uint32_t field, wire; in.next(field, wire);) {
    uint64_t value;
    if (wire != 0) {
      in.skip(wire);
      continue;
    }
    if (!in.varint(value)) return;
    if (field == 3) file.model_type = value;
    if (field == 24) file.suffix_space = value != 0;
    if (field == 41) file.bos_id = id_of(value);
    if (field == 42) file.eos_id = id_of(value);
    if (field == 43) file.pad_id = id_of(value);
  }
}

void read_normalizer(ProtoReader& in, SentencePieceRules& rules) {
  rules.remove_extra_whitespaces = true;  // the format's default
  for (uint32_t field, wire; in.next(field, wire);) {
    std::string_view text;
    uint64_t value;
    if (field == 2 && wire == 2) {
      if (in.bytes(text)) rules.charsmap = text;
    } else if (wire == 0) {
      if (!in.varint(value)) return;
      if (field == 3) rules.add_dummy_prefix = value != 0;
      if (field == 4) rules.remove_extra_whitespaces = value != 0;
      if (field == 5) rules.escape_whitespaces = value != 0;
    } else {
      in.skip(wire);
    }
  }
}

Result<ModelFile> read_model(std::string_view bytes, const std::string& name) {
  ModelFile file;
  file.data.rules.remove_extra_whitespaces = true;
  ProtoReader in(bytes, 0);
  for (uint32_t field, wire; in.next(field, wire);) {
    std::string_view message;
    if (wire != 2 || field > 3) {
      in.skip(wire);
      continue;
    }
    if (!in.bytes(message)) break;
    ProtoReader inner(message,
                      static_cast<size_t>(message.data() - bytes.data()));
    if (field == 1) read_piece(inner, file.data);
    if (field == 2) read_trainer(inner, file);
    if (field == 3) read_normalizer(inner, file.data.rules);
    if (inner.failed()) return broken(name, inner);
  }
  if (in.failed() || file.data.pieces.empty()) return broken(name, in);
  if (file.model_type != 1 && file.model_type != 2) {
    return unsupported(
        fmt::format("{}: model_type {} (1, Unigram, and 2, BPE, are supported)",
                    name,
                    file.model_type));
  }
  if (file.suffix_space) {
    return unsupported(name + ": treat_whitespace_as_suffix");
  }
  file.data.bpe = file.model_type == 2;
  return file;
}

// Higher scores merge first; equal scores rank the same.
std::vector<uint32_t> ranks_of(const SentencePieceData& data) {
  std::vector<uint32_t> rank(data.scores.size(), MergeTable::kNoRank);
  std::vector<float> levels;
  for (size_t i = 0; i < rank.size(); ++i) {
    const PieceType type = data.types[i];
    const bool joined = type == PieceType::kNormal ||
                        type == PieceType::kUserDefined ||
                        type == PieceType::kUnused;
    if (!joined) continue;
    rank[i] = 0;
    levels.push_back(data.scores[i]);
  }
  std::sort(levels.begin(), levels.end(), std::greater<>());
  levels.erase(std::unique(levels.begin(), levels.end()), levels.end());
  for (size_t i = 0; i < rank.size(); ++i) {
    if (rank[i] == MergeTable::kNoRank) continue;
    const auto level = std::lower_bound(
        levels.begin(), levels.end(), data.scores[i], std::greater<>());
    rank[i] = static_cast<uint32_t>(level - levels.begin());
  }
  return rank;
}

Status build_model(const SentencePieceData& data,
                   Vocab vocab,
                   TokenizerParts& parts) {
  bool bytes = false;
  for (const PieceType type : data.types) bytes |= type == PieceType::kByte;
  if (!data.bpe) {
    std::vector<bool> usable(data.types.size());
    for (size_t i = 0; i < usable.size(); ++i) {
      usable[i] = data.types[i] == PieceType::kNormal ||
                  data.types[i] == PieceType::kUserDefined;
    }
    FLASH_ASSIGN_OR_RETURN(
        parts.unigram,
        UnigramModel::create(
            std::move(vocab),
            std::vector<double>(data.scores.begin(), data.scores.end()),
            usable,
            {data.unk_id, bytes}));
    return Status();
  }
  BpeOptions options;
  options.byte_fallback = bytes;
  options.fuse_unk = true;
  if (data.unk_id) options.unk_token = vocab[*data.unk_id];
  FLASH_ASSIGN_OR_RETURN(
      parts.bpe,
      BpeModel::create_ranked(
          std::move(vocab), ranks_of(data), std::move(options)));
  return Status();
}

}  // namespace

Result<TokenizerParts> build_sentencepiece(SentencePieceData data) {
  TokenizerParts parts;
  VocabBuilder builder;
  for (size_t i = 0; i < data.pieces.size(); ++i) {
    const std::string_view piece = data.pieces[i];
    if (find_invalid_utf8(piece) != std::string_view::npos) {
      return invalid_input(
          fmt::format("token {} is not valid UTF-8: {}", i, quote(piece)));
    }
    if (!std::isfinite(data.scores[i])) {
      return invalid_input(
          fmt::format("the score of token {} is not finite", i));
    }
    FLASH_RETURN_IF_ERROR(builder.add(piece, static_cast<int64_t>(i)));
    const PieceType type = data.types[i];
    const auto id = static_cast<int32_t>(i);
    if (type == PieceType::kUnknown && !data.unk_id) data.unk_id = id;
    const bool cut = type == PieceType::kControl ||
                     type == PieceType::kUserDefined ||
                     type == PieceType::kUnknown;
    if (!cut || piece.empty()) continue;
    AddedToken token;
    token.id = id;
    token.normalized = false;
    token.special = type != PieceType::kUserDefined;
    FLASH_RETURN_IF_ERROR(parts.added.add(piece, token));
  }
  data.pieces = StringTable();
  FLASH_ASSIGN_OR_RETURN(Vocab vocab, std::move(builder).build(true));
  FLASH_RETURN_IF_ERROR(build_model(data, std::move(vocab), parts));
  const bool prefix = data.rules.add_dummy_prefix;
  if (prefix && !data.prefix_every_segment) {
    data.rules.add_dummy_prefix = false;
    const nlohmann::json metaspace = {
        {"type", "Metaspace"}, {"prepend_scheme", "first"}, {"split", false}};
    FLASH_ASSIGN_OR_RETURN(
        parts.pre_tokenizer,
        make_pre_tokenizer(metaspace, "pre-tokenizer", false));
  }
  FLASH_ASSIGN_OR_RETURN(parts.normalizer,
                         make_sentencepiece_normalizer(std::move(data.rules)));
  parts.decoder = DecoderChain::sentencepiece(prefix);
  return parts;
}

bool looks_like_sentencepiece(std::string_view bytes) {
  // Field 1 (a piece), length-delimited; tiktoken's base64 cannot start so.
  return bytes.starts_with('\n') && bytes.size() > 1 && bytes[1] != '\n';
}

Result<TokenizerParts> parse_sentencepiece(std::string_view bytes,
                                           const std::string& name,
                                           const TokenizerConfig& config) {
  Result<ModelFile> read = read_model(bytes, name);
  if (!read.ok()) return read.status();
  ModelFile file = std::move(read).value();
  const auto count = static_cast<int32_t>(file.data.pieces.size());
  file.data.prefix_every_segment = config.legacy.value_or(true);
  std::vector<std::pair<std::string, std::string>> special;
  const auto name_special = [&](const char* key, std::optional<int32_t> id) {
    if (!id || *id >= count) return;
    special.emplace_back(key, file.data.pieces[static_cast<size_t>(*id)]);
  };
  name_special("bos_token", file.bos_id);
  name_special("eos_token", file.eos_id);
  name_special("pad_token", file.pad_id);
  Result<TokenizerParts> built = build_sentencepiece(std::move(file.data));
  if (!built.ok()) return built.status().at(name);
  TokenizerParts parts = std::move(built).value();
  parts.special_tokens = std::move(special);
  for (const TokenizerConfig::Added& added : config.added) {
    const int32_t known = parts.vocab().find(added.content);
    if (known != Vocab::kNone || parts.vocab().has(added.token.id)) continue;
    FLASH_RETURN_IF_ERROR(parts.added.add(added.content, added.token));
  }
  if (config.add_bos.value_or(true) && file.bos_id && *file.bos_id < count) {
    parts.before.push_back(*file.bos_id);
  }
  if (config.add_eos.value_or(false) && file.eos_id && *file.eos_id < count) {
    parts.after.push_back(*file.eos_id);
  }
  return parts;
}

}  // namespace mlx_flash
