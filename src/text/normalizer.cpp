// SPDX-License-Identifier: MIT
#include "text/normalizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <cstdlib>

#include "base/quote.h"
#include "text/base64.h"
#include "text/bpe.h"
#include "text/charsmap.h"
#include "text/json_fields.h"
#include "text/regex.h"
#include "text/unicode_versions.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

using Json = nlohmann::json;

class UnicodeForm final : public Normalizer {
 public:
  explicit UnicodeForm(int options)
      : options_(static_cast<utf8proc_option_t>(options)) {}
  Status apply(std::string& text) const override {
    bool ascii = true;  // which no normal form changes
    for (const char c : text) ascii = ascii && static_cast<signed char>(c) >= 0;
    if (ascii) return Status();
    std::string out;
    out.reserve(text.size());
    size_t begin = 0;  // of what is normalised as one piece
    for (size_t at = 0; at < text.size();) {
      const size_t here = at;
      if (!is_inert_in_unicode_9(next_character(text, at))) continue;
      FLASH_RETURN_IF_ERROR(
          append(std::string_view(text).substr(begin, here - begin), out));
      out.append(text, here, at - here);
      begin = at;
    }
    FLASH_RETURN_IF_ERROR(append(std::string_view(text).substr(begin), out));
    text = std::move(out);
    return Status();
  }

 private:
  Status append(std::string_view piece, std::string& out) const {
    if (piece.empty()) return Status();
    utf8proc_uint8_t* made = nullptr;
    const utf8proc_ssize_t bytes =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(piece.data()),
                     static_cast<utf8proc_ssize_t>(piece.size()),
                     &made,
                     options_);
    if (bytes < 0) {
      return exhausted(
          fmt::format("Unicode normalisation: {}", utf8proc_errmsg(bytes)));
    }
    out.append(reinterpret_cast<const char*>(made), static_cast<size_t>(bytes));
    std::free(made);  // utf8proc allocates with malloc
    return Status();
  }

  utf8proc_option_t options_;
};

// One character at a time: a function appends what becomes of it.
class CharacterMap final : public Normalizer {
 public:
  using Map = void (*)(uint32_t character, std::string& out);
  explicit CharacterMap(Map map) : map_(map) {}
  Status apply(std::string& text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size();) map_(next_character(text, at), out);
    text = std::move(out);
    return Status();
  }

 private:
  Map map_;
};

void to_lower(uint32_t c, std::string& out) {
  if (c == 0x130) {  // the one letter with a longer lower case
    out += "i\xCC\x87";
    return;
  }
  append_utf8(out,
              static_cast<uint32_t>(utf8proc_tolower(static_cast<int32_t>(c))));
}

void strip_accents(uint32_t c, std::string& out) {
  if (!is_mark(c)) append_utf8(out, c);
}

void to_byte_level(uint32_t c, std::string& out) {
  std::string bytes;
  append_utf8(bytes, c);
  append_byte_level(out, bytes);
}

// The "nmt" rules of SentencePiece.
void nmt(uint32_t c, std::string& out) {
  const bool dropped = (c >= 0x1 && c <= 0x8) || c == 0xB ||
                       (c >= 0xE && c <= 0x1F) || c == 0x7F || c == 0x8F ||
                       c == 0x9F;
  if (dropped) return;
  const bool space = c == 0x9 || c == 0xA || c == 0xC || c == 0xD ||
                     c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                     c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF ||
                     c == 0xFFFD;
  append_utf8(out, space ? ' ' : c);
}

class Strip final : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  Status apply(std::string& text) const override {
    size_t end = text.size();
    while (right_ && end > 0) {
      const std::string_view rest = std::string_view(text).substr(0, end);
      const uint32_t c = last_character(rest);
      if (!is_white_space(c)) break;
      std::string one;
      append_utf8(one, c);
      end -= one.size();
    }
    size_t begin = 0;
    while (left_ && begin < end) {
      size_t next = begin;
      if (!is_white_space(next_character(text, next))) break;
      begin = next;
    }
    text = text.substr(begin, end - begin);
    return Status();
  }

 private:
  bool left_;
  bool right_;
};

class Prepend final : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  Status apply(std::string& text) const override {
    if (!text.empty()) text.insert(0, prefix_);
    return Status();
  }

 private:
  std::string prefix_;
};

class ReplaceString final : public Normalizer {
 public:
  ReplaceString(std::string from, std::string to)
      : from_(std::move(from)), to_(std::move(to)) {}
  Status apply(std::string& text) const override {
    if (from_.empty()) return Status();
    size_t found = text.find(from_);
    if (found == std::string::npos) return Status();
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    size_t at = 0;
    for (; found != std::string::npos; found = text.find(from_, at)) {
      out.append(text, at, found - at);
      out += to_;
      at = found + from_.size();
    }
    out.append(text, at);
    text = std::move(out);
    return Status();
  }

 private:
  std::string from_;
  std::string to_;
};

class ReplaceRegex final : public Normalizer {
 public:
  ReplaceRegex(Regex from, std::string to)
      : from_(std::move(from)), to_(std::move(to)) {}
  Status apply(std::string& text) const override {
    std::string out;
    RegexScanner scanner(from_);
    scanner.start(text);
    size_t at = 0;
    for (size_t begin, end; scanner.next(begin, end); at = end) {
      out.append(text, at, begin - at);
      out += to_;
    }
    FLASH_RETURN_IF_ERROR(scanner.status());
    out.append(text, at);
    text = std::move(out);
    return Status();
  }

 private:
  Regex from_;
  std::string to_;
};

// The charsmap as Hugging Face applies it: whole grapheme clusters of up to
// five bytes first (by the shortest entry they start with), then characters.
class Precompiled final : public Normalizer {
 public:
  explicit Precompiled(Charsmap map) : map_(std::move(map)) {}
  Status apply(std::string& text) const override {
    std::string out;
    out.reserve(text.size());
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = grapheme_end(text, begin);
      append(std::string_view(text).substr(begin, end - begin), out);
      begin = end;
    }
    text = std::move(out);
    return Status();
  }
  size_t memory_bytes() const override { return map_.memory_bytes(); }

 private:
  static size_t grapheme_end(const std::string& text, size_t at) {
    int32_t state = 0;
    auto before = static_cast<int32_t>(next_character(text, at));
    while (at < text.size()) {
      size_t next = at;
      const auto after = static_cast<int32_t>(next_character(text, next));
      if (utf8proc_grapheme_break_stateful(before, after, &state)) break;
      before = after;
      at = next;
    }
    return at;
  }
  void append(std::string_view grapheme, std::string& out) const {
    if (grapheme.size() < 6) {
      if (const auto match = map_.shortest(grapheme)) {
        out += match->replacement;
        return;
      }
    }
    for (size_t at = 0; at < grapheme.size();) {
      const std::string_view c = grapheme.substr(at, utf8_length(grapheme[at]));
      const auto match = map_.shortest(c);
      out += match ? match->replacement : c;
      at += c.size();
    }
  }
  Charsmap map_;
};

class SentencePieceNormalizer final : public Normalizer {
 public:
  SentencePieceNormalizer(SentencePieceRules rules, std::optional<Charsmap> map)
      : rules_(std::move(rules)), map_(std::move(map)) {}
  Status apply(std::string& text) const override {
    const std::string_view space =
        rules_.escape_whitespaces ? std::string_view("\xE2\x96\x81") : " ";
    const bool squeeze = rules_.remove_extra_whitespaces;
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    bool after_space = squeeze;  // leading spaces count as extra
    bool any = false;
    for (size_t at = 0; at < text.size();) {
      const auto [length, piece] =
          next_piece(std::string_view(text).substr(at));
      at += length;
      for (const char c : piece) {
        if (c == ' ' && after_space) continue;
        if (!any && rules_.add_dummy_prefix) out += space;
        any = true;
        if (c == ' ') {
          out += space;
        } else {
          out += c;
        }
        after_space = squeeze && c == ' ';
      }
    }
    while (squeeze && out.ends_with(space)) {
      out.erase(out.size() - space.size());
    }
    text = std::move(out);
    return Status();
  }
  size_t memory_bytes() const override {
    return map_ ? map_->memory_bytes() : 0;
  }

 private:
  Charsmap::Match next_piece(std::string_view text) const {
    if (map_) {
      if (const auto match = map_->longest(text)) return *match;
    }
    const size_t length = utf8_length(text[0]);
    return {length, text.substr(0, length)};
  }
  SentencePieceRules rules_;
  std::optional<Charsmap> map_;
};

class Sequence final : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<Normalizer>> steps)
      : steps_(std::move(steps)) {}
  Status apply(std::string& text) const override {
    for (const auto& step : steps_) FLASH_RETURN_IF_ERROR(step->apply(text));
    return Status();
  }
  size_t memory_bytes() const override {
    size_t bytes = 0;
    for (const auto& step : steps_) bytes += step->memory_bytes();
    return bytes;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

using Made = Result<std::unique_ptr<Normalizer>>;

Made make_sequence(const Json& d, const std::string& where) {
  const auto list = d.find("normalizers");
  if (list == d.end() || !list->is_array()) {
    return invalid_input(where + ": 'normalizers' must be a list");
  }
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (size_t i = 0; i < list->size(); ++i) {
    FLASH_ASSIGN_OR_RETURN(
        auto step,
        make_normalizer((*list)[i], fmt::format("{}[{}]", where, i)));
    if (step != nullptr) steps.push_back(std::move(step));
  }
  return Made(std::make_unique<Sequence>(std::move(steps)));
}

Made make_replace(const Json& d, const std::string& where) {
  PatternField pattern;
  std::string content;
  FLASH_RETURN_IF_ERROR(read_pattern(d, "pattern", where, pattern));
  FLASH_RETURN_IF_ERROR(require_field(d, "content", where, content));
  if (!pattern.regex) {
    return Made(std::make_unique<ReplaceString>(pattern.text, content));
  }
  Result<Regex> regex = Regex::compile(pattern.text);
  if (!regex.ok()) return regex.status().at(where);
  return Made(
      std::make_unique<ReplaceRegex>(std::move(regex).value(), content));
}

Made make_precompiled(const Json& d, const std::string& where) {
  std::string base64;
  FLASH_RETURN_IF_ERROR(read_field(d, "precompiled_charsmap", where, base64));
  if (base64.empty()) return Made(std::unique_ptr<Normalizer>());
  std::string bytes;
  if (!decode_base64(base64, bytes)) {
    return invalid_input(where + ": 'precompiled_charsmap' is not base64");
  }
  Result<Charsmap> map = Charsmap::parse(bytes);
  if (!map.ok()) return map.status().at(where);
  return Made(std::make_unique<Precompiled>(std::move(map).value()));
}

}  // namespace

Made make_normalizer(const Json& d, const std::string& where) {
  if (d.is_null()) return Made(std::unique_ptr<Normalizer>());
  std::string type;
  FLASH_RETURN_IF_ERROR(require_field(d, "type", where, type));
  const auto form = [](int options) {
    return Made(std::make_unique<UnicodeForm>(options));
  };
  const auto map = [](CharacterMap::Map function) {
    return Made(std::make_unique<CharacterMap>(function));
  };
  constexpr int kCompose = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
  constexpr int kDecompose = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (type == "NFC") return form(kCompose);
  if (type == "NFD") return form(kDecompose);
  if (type == "NFKC") return form(kCompose | UTF8PROC_COMPAT);
  if (type == "NFKD") return form(kDecompose | UTF8PROC_COMPAT);
  if (type == "Lowercase") return map(to_lower);
  if (type == "StripAccents") return map(strip_accents);
  if (type == "Nmt") return map(nmt);
  if (type == "ByteLevel") return map(to_byte_level);
  if (type == "Sequence") return make_sequence(d, where);
  if (type == "Replace") return make_replace(d, where);
  if (type == "Precompiled") return make_precompiled(d, where);
  if (type == "Strip") {
    bool left = true;
    bool right = true;
    FLASH_RETURN_IF_ERROR(read_field(d, "strip_left", where, left));
    FLASH_RETURN_IF_ERROR(read_field(d, "strip_right", where, right));
    return Made(std::make_unique<Strip>(left, right));
  }
  if (type == "Prepend") {
    std::string prefix;
    FLASH_RETURN_IF_ERROR(require_field(d, "prepend", where, prefix));
    return Made(std::make_unique<Prepend>(prefix));
  }
  return unsupported(
      fmt::format("{}: no such normalizer: {}", where, quote(type)));
}

Made make_sentencepiece_normalizer(SentencePieceRules rules) {
  std::optional<Charsmap> map;
  if (!rules.charsmap.empty()) {
    FLASH_ASSIGN_OR_RETURN(map, Charsmap::parse(rules.charsmap));
    rules.charsmap = std::string();
  }
  return Made(std::make_unique<SentencePieceNormalizer>(std::move(rules),
                                                        std::move(map)));
}

}  // namespace mlx_flash
