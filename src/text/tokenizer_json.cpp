// SPDX-License-Identifier: MIT

// Reads tokenizer.json as a stream. The vocabulary and the merges go straight
// into their tables; the small parts (normalizer, decoder, ...) are documents.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/quote.h"
#include "text/json_fields.h"
#include "text/json_reader.h"
#include "text/tokenizer_parts.h"

namespace mlx_flash {
namespace {

using Json = nlohmann::json;
using Type = JsonReader::Type;

constexpr size_t kSmallPartBytesMax = 4 << 20;

class TokenizerJsonReader {
 public:
  explicit TokenizerJsonReader(JsonReader& in) : in_(in) {}

  Result<TokenizerParts> read() {
    bool has_model = false;
    std::string_view key;
    in_.begin_object();
    while (in_.next_key(key)) {
      if (key == "added_tokens") {
        read_added();
      } else if (key == "model") {
        if (has_model) in_.fail("'model' twice");
        has_model = true;
        read_model();
      } else if (Json* part = small_part(key)) {
        in_.read_value(*part, kSmallPartBytesMax);
      } else {
        in_.skip_value();
      }
    }
    in_.finish();
    FLASH_RETURN_IF_ERROR(in_.status());
    if (!has_model) return invalid_input(in_.name() + ": 'model' is missing");
    return assemble();
  }

 private:
  struct Added {
    std::string content;
    AddedToken token;
  };

  Json* small_part(std::string_view key) {
    if (key == "normalizer") return &normalizer_;
    if (key == "pre_tokenizer") return &pre_tokenizer_;
    if (key == "post_processor") return &post_processor_;
    if (key == "decoder") return &decoder_;
    return nullptr;
  }

  // Where in the file a small part stands, for messages.
  std::string where(std::string_view part) const {
    return fmt::format("{}: {}", in_.name(), part);
  }

  void read_added() {
    if (in_.peek() == Type::kNull) {
      in_.read_null();
      return;
    }
    in_.begin_array();
    while (in_.next_element()) read_added_token();
  }

  void read_added_token() {
    Added added;
    int64_t id = -1;
    std::string_view text;
    in_.begin_object();
    while (in_.next_key(text)) {
      if (text == "id") {
        in_.read_integer(id);
      } else if (text == "content") {
        if (in_.read_string(text)) added.content = text;
      } else if (bool* flag = added_flag(added.token, text)) {
        in_.read_bool(*flag);
      } else {
        in_.skip_value();
      }
    }
    if (!in_.ok()) return;
    if (id < 0 || id > kTokenIdMax) {
      in_.fail(fmt::format("added token {}: id {} is outside [0, {}]",
                           quote(added.content),
                           id,
                           kTokenIdMax));
      return;
    }
    added.token.id = static_cast<int32_t>(id);
    added_.push_back(std::move(added));
  }

  static bool* added_flag(AddedToken& token, std::string_view key) {
    if (key == "special") return &token.special;
    if (key == "normalized") return &token.normalized;
    if (key == "lstrip") return &token.left_strip;
    if (key == "rstrip") return &token.right_strip;
    if (key == "single_word") return &token.single_word;
    return nullptr;
  }

  void read_model() {
    std::string_view key;
    in_.begin_object();
    while (in_.next_key(key)) {
      if (key == "vocab") {
        read_vocab();
      } else if (key == "merges") {
        read_merges();
      } else if (std::string* text = model_text(key)) {
        read_optional(*text);
      } else if (bool* flag = model_flag(key)) {
        if (in_.peek() == Type::kNull) {
          in_.read_null();
        } else {
          in_.read_bool(*flag);
        }
      } else if (key == "unk_id") {
        read_unk_id();
      } else {
        in_.skip_value();  // dropout and what does not change ids
      }
    }
  }

  std::string* model_text(std::string_view key) {
    if (key == "type") return &type_;
    if (key == "unk_token") return &options_.unk_token;
    if (key == "continuing_subword_prefix") {
      return &options_.continuing_subword_prefix;
    }
    if (key == "end_of_word_suffix") return &options_.end_of_word_suffix;
    return nullptr;
  }
  bool* model_flag(std::string_view key) {
    if (key == "fuse_unk") return &options_.fuse_unk;
    if (key == "byte_fallback") return &options_.byte_fallback;
    if (key == "ignore_merges") return &options_.ignore_merges;
    return nullptr;
  }

  void read_optional(std::string& value) {
    std::string_view text;
    if (in_.peek() == Type::kNull) {
      in_.read_null();
    } else if (in_.read_string(text)) {
      value = text;
    }
  }

  void read_unk_id() {
    if (in_.peek() == Type::kNull) {
      in_.read_null();
      return;
    }
    int64_t id = -1;
    if (!in_.read_integer(id)) return;
    if (id < 0 || id > kTokenIdMax) {
      in_.fail(fmt::format("unk_id {} is out of range", id));
      return;
    }
    unk_id_ = static_cast<int32_t>(id);
  }

  // {"token": id, ...} of BPE, or [["token", score], ...] of Unigram.
  void read_vocab() {
    if (vocab_read_) {
      in_.fail("'vocab' twice");
      return;
    }
    vocab_read_ = true;
    if (in_.peek() == Type::kArray) {
      read_scored_vocab();
    } else {
      read_numbered_vocab();
    }
    if (!in_.ok()) return;
    Result<Vocab> built = std::move(builder_).build(false);
    if (!built.ok()) {
      in_.fail(built.status().message());
      return;
    }
    vocab_ = std::move(built).value();
  }

  void read_numbered_vocab() {
    std::string_view token;
    std::string copy;
    in_.begin_object();
    while (in_.next_key(token)) {
      copy.assign(token);
      int64_t id;
      if (!in_.read_integer(id)) return;
      const Status status = builder_.add(copy, id);
      if (!status.ok()) in_.fail(printable(status.message()));
    }
  }

  void read_scored_vocab() {
    std::string_view token;
    in_.begin_array();
    while (in_.next_element()) {
      in_.begin_array();
      if (!in_.next_element()) {
        in_.fail("[token, score] is due");
        return;
      }
      if (!in_.read_string(token)) return;
      const Status status =
          builder_.add(token, static_cast<int64_t>(builder_.tokens()));
      if (!status.ok()) in_.fail(printable(status.message()));
      double score;
      if (!in_.next_element() || !in_.read_number(score) ||
          in_.next_element()) {
        in_.fail("[token, score] is due");
        return;
      }
      scores_.push_back(score);
    }
    scored_ = true;
  }

  // ["a b", ...] or [["a", "b"], ...]. The vocabulary comes first in every
  // file of the field; if not, the strings wait.
  void read_merges() {
    if (in_.peek() == Type::kNull) {
      in_.read_null();
      return;
    }
    in_.begin_array();
    while (in_.next_element()) {
      if (in_.peek() == Type::kArray) {
        read_merge_pair();
      } else {
        read_merge_text();
      }
    }
  }

  void read_merge_pair() {
    std::string_view text;
    in_.begin_array();
    if (in_.next_element() && in_.read_string(text)) {
      left_.assign(text);
      if (in_.next_element() && in_.read_string(text)) {
        right_.assign(text);
        if (!in_.next_element()) {
          if (in_.ok()) add_merge(left_, right_);
          return;
        }
      }
    }
    in_.fail("a merge is [\"left\", \"right\"]");
  }

  void read_merge_text() {
    std::string_view text;
    if (!in_.read_string(text)) return;
    const size_t space = text.find(' ');
    if (space == std::string_view::npos ||
        text.find(' ', space + 1) != std::string_view::npos) {
      in_.fail(
          fmt::format("merge {}: {} is not two tokens with one space between",
                      merge_count(),
                      quote(text)));
      return;
    }
    add_merge(text.substr(0, space), text.substr(space + 1));
  }

  size_t merge_count() const {
    return vocab_read_ ? pairs_.size() : waiting_left_.size();
  }

  void add_merge(std::string_view left, std::string_view right) {
    if (!vocab_read_) {
      waiting_left_.push_back(left);
      waiting_right_.push_back(right);
      return;
    }
    const MergePair pair{vocab_.find(left), vocab_.find(right)};
    if (pair.left == Vocab::kNone || pair.right == Vocab::kNone) {
      const bool first = pair.left == Vocab::kNone;
      in_.fail(fmt::format("merge {} names {}, which is not in the vocabulary",
                           pairs_.size(),
                           quote(first ? left : right)));
      return;
    }
    pairs_.push_back(pair);
  }

  Result<TokenizerParts> assemble() {
    TokenizerParts parts;
    FLASH_RETURN_IF_ERROR(build_model(parts));
    FLASH_RETURN_IF_ERROR(add_added(parts));
    FLASH_ASSIGN_OR_RETURN(parts.normalizer,
                           make_normalizer(normalizer_, where("normalizer")));
    const bool raw = parts.bpe.has_value() && parts.bpe->byte_level();
    FLASH_ASSIGN_OR_RETURN(
        parts.pre_tokenizer,
        make_pre_tokenizer(pre_tokenizer_, where("pre_tokenizer"), raw));
    FLASH_ASSIGN_OR_RETURN(parts.decoder,
                           DecoderChain::make(decoder_, where("decoder")));
    FLASH_RETURN_IF_ERROR(
        add_post_processor(post_processor_, where("post_processor"), parts));
    return parts;
  }

  Status build_model(TokenizerParts& parts) {
    if (!vocab_read_) return invalid_input(where("model: 'vocab' is missing"));
    const std::string type =
        !type_.empty() ? type_ : (scored_ ? "Unigram" : "BPE");
    if (type == "Unigram") {
      if (!scored_) {
        return invalid_input(where("model: Unigram needs [token, score]"));
      }
      Result<UnigramModel> model =
          UnigramModel::create(std::move(vocab_),
                               std::move(scores_),
                               {},
                               {unk_id_, options_.byte_fallback});
      if (!model.ok()) return model.status().at(where("model"));
      parts.unigram = std::move(model).value();
      return Status();
    }
    if (type != "BPE") {
      return unsupported(fmt::format(
          "{}: {} (BPE and Unigram are)", where("model.type"), quote(type)));
    }
    if (scored_) return invalid_input(where("model: BPE's vocab is an object"));
    for (size_t i = 0; i < waiting_left_.size() && in_.ok(); ++i) {
      add_merge(waiting_left_[i], waiting_right_[i]);
    }
    FLASH_RETURN_IF_ERROR(in_.status());
    Result<BpeModel> model =
        BpeModel::create(std::move(vocab_), pairs_, std::move(options_));
    if (!model.ok()) return model.status().at(where("model"));
    pairs_ = {};
    parts.bpe = std::move(model).value();
    return Status();
  }

  // A content that the model has too keeps the model's id.
  Status add_added(TokenizerParts& parts) {
    const Vocab& vocab = parts.vocab();
    for (Added& added : added_) {
      const int32_t id = vocab.find(added.content);
      if (id != Vocab::kNone) {
        added.token.id = id;
      } else if (vocab.has(added.token.id)) {
        return invalid_input(
            fmt::format("{}: {} has id {}, which the vocabulary gives to {}",
                        where("added_tokens"),
                        quote(added.content),
                        added.token.id,
                        quote(vocab[added.token.id])));
      }
      if (added.content.empty()) continue;  // never found in a text
      const Status status = parts.added.add(added.content, added.token);
      if (!status.ok()) return status.at(where("added_tokens"));
    }
    return Status();
  }

  Status add_post_processor(const Json& d,
                            const std::string& place,
                            TokenizerParts& parts) {
    if (d.is_null()) return Status();
    std::string type;
    FLASH_RETURN_IF_ERROR(require_field(d, "type", place, type));
    if (type == "ByteLevel") return Status();  // changes offsets only
    if (type == "TemplateProcessing") return add_template(d, place, parts);
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      FLASH_RETURN_IF_ERROR(add_pair(d, "cls", place, parts.before));
      return add_pair(d, "sep", place, parts.after);
    }
    if (type != "Sequence") {
      return unsupported(
          fmt::format("{}: no such post-processor: {}", place, quote(type)));
    }
    const auto list = d.find("processors");
    if (list == d.end() || !list->is_array()) {
      return invalid_input(place + ": 'processors' must be a list");
    }
    for (size_t i = 0; i < list->size(); ++i) {
      FLASH_RETURN_IF_ERROR(add_post_processor(
          (*list)[i], fmt::format("{}[{}]", place, i), parts));
    }
    return Status();
  }

  // ["<s>", 0]
  Status add_pair(const Json& d,
                  const char* key,
                  const std::string& place,
                  std::vector<int32_t>& ids) {
    const auto pair = d.find(key);
    if (pair == d.end() || !pair->is_array() || pair->size() != 2) {
      return invalid_input(
          fmt::format("{}: '{}' must be [token, id]", place, key));
    }
    return add_id((*pair)[1], place, ids);
  }

  Status add_id(const Json& id,
                const std::string& place,
                std::vector<int32_t>& ids) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() > kTokenIdMax) {
      return invalid_input(place + ": " + printable(id.dump()) +
                           " is not a token id");
    }
    ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
    return Status();
  }

  // "single": special tokens before and after the sequence A.
  Status add_template(const Json& d,
                      const std::string& place,
                      TokenizerParts& parts) {
    const auto single = d.find("single");
    const auto tokens = d.find("special_tokens");
    if (single == d.end() || !single->is_array() || tokens == d.end()) {
      return invalid_input(place +
                           ": 'single' and 'special_tokens' are needed");
    }
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    bool seen = false;
    for (const Json& piece : *single) {
      if (piece.is_object() && piece.contains("Sequence")) {
        if (seen) return unsupported(place + ": the text stands there twice");
        seen = true;
        continue;
      }
      if (!piece.is_object() || !piece.contains("SpecialToken")) {
        return invalid_input(place +
                             ": a piece is neither Sequence nor "
                             "SpecialToken");
      }
      FLASH_RETURN_IF_ERROR(template_token(
          piece["SpecialToken"], *tokens, place, seen ? after : before));
    }
    if (!seen) return unsupported(place + ": the text does not occur");
    parts.before.insert(parts.before.begin(), before.begin(), before.end());
    parts.after.insert(parts.after.end(), after.begin(), after.end());
    return Status();
  }

  Status template_token(const Json& piece,
                        const Json& tokens,
                        const std::string& place,
                        std::vector<int32_t>& ids) {
    std::string name;
    FLASH_RETURN_IF_ERROR(require_field(piece, "id", place, name));
    if (!tokens.is_object() || !tokens.contains(name) ||
        !tokens[name].is_object() || !tokens[name].contains("ids") ||
        !tokens[name]["ids"].is_array()) {
      return invalid_input(fmt::format(
          "{}: special_tokens has no ids for {}", place, quote(name)));
    }
    for (const Json& id : tokens[name]["ids"]) {
      FLASH_RETURN_IF_ERROR(add_id(id, place, ids));
    }
    return Status();
  }

  JsonReader& in_;
  Json normalizer_;
  Json pre_tokenizer_;
  Json post_processor_;
  Json decoder_;
  std::vector<Added> added_;
  std::string type_;
  BpeOptions options_;
  std::optional<int32_t> unk_id_;
  VocabBuilder builder_;
  Vocab vocab_;
  bool vocab_read_ = false;
  bool scored_ = false;
  std::vector<double> scores_;
  std::vector<MergePair> pairs_;
  std::string left_;
  std::string right_;
  StringTable waiting_left_;
  StringTable waiting_right_;
};

}  // namespace

Result<TokenizerParts> read_tokenizer_json(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(const auto reader, JsonReader::open(path));
  return TokenizerJsonReader(*reader).read();
}

Result<TokenizerParts> parse_tokenizer_json(std::string_view text,
                                            const std::string& name) {
  JsonReader reader(text, name);
  return TokenizerJsonReader(reader).read();
}

}  // namespace mlx_flash
