// SPDX-License-Identifier: MIT
#include "text/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "base/quote.h"
#include "text/bpe.h"
#include "text/json_fields.h"
#include "text/regex.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

using Json = nlohmann::json;
using Span = PreTokens::Span;

constexpr std::string_view kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
    "\\s+(?!\\S)|\\s+";

// Joins or drops neighbouring parts of one span as the behaviour asks. Parts
// come in order and leave no gap.
class PartMerger {
 public:
  PartMerger(SplitBehavior behavior, std::vector<Span>& out)
      : behavior_(behavior), out_(out) {}

  void begin_span() {
    first_ = out_.size();
    previous_match_ = false;
  }

  void add(size_t begin, size_t end, bool match) {
    const Span part{static_cast<uint32_t>(begin), static_cast<uint32_t>(end)};
    const bool join = out_.size() > first_ && joins(match);
    previous_match_ = match;
    if (join) {
      out_.back().end = part.end;
    } else if (part.begin != part.end &&
               !(match && behavior_ == SplitBehavior::kRemoved)) {
      out_.push_back(part);
    }
  }

 private:
  // Whether this part goes to the one before it.
  bool joins(bool match) const {
    switch (behavior_) {
      case SplitBehavior::kRemoved:
      case SplitBehavior::kIsolated:
        return false;
      case SplitBehavior::kContiguous:
        return match == previous_match_;
      case SplitBehavior::kMergedWithPrevious:
        return match && !previous_match_;
      case SplitBehavior::kMergedWithNext:
        // Seen from the right, a match goes to a part that is none.
        return !match && previous_match_;
    }
    return false;
  }

  SplitBehavior behavior_;
  std::vector<Span>& out_;
  size_t first_ = 0;  // where the parts of this span start in out_
  bool previous_match_ = false;
};

class SplitRegex final : public PreTokenizer {
 public:
  SplitRegex(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  Status apply(PreTokens& tokens) const override {
    std::vector<Span> out;
    out.reserve(tokens.spans.size() + tokens.text.size() / 5);
    PartMerger parts(behavior_, out);
    RegexScanner scanner(regex_);
    for (size_t i = 0; i < tokens.spans.size(); ++i) {
      const std::string_view text = tokens[i];
      const size_t base = tokens.spans[i].begin;
      parts.begin_span();
      scanner.start(text);
      size_t at = 0;
      for (size_t begin, end; scanner.next(begin, end); at = end) {
        if (at != begin) parts.add(base + at, base + begin, invert_);
        parts.add(base + begin, base + end, !invert_);
      }
      FLASH_RETURN_IF_ERROR(scanner.status());
      if (at != text.size()) parts.add(base + at, base + text.size(), invert_);
    }
    tokens.spans = std::move(out);
    return Status();
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class SplitString final : public PreTokenizer {
 public:
  SplitString(std::string pattern, SplitBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  Status apply(PreTokens& tokens) const override {
    std::vector<Span> out;
    PartMerger parts(behavior_, out);
    for (size_t i = 0; i < tokens.spans.size(); ++i) {
      const std::string_view text = tokens[i];
      const size_t base = tokens.spans[i].begin;
      parts.begin_span();
      size_t at = 0;
      while (!pattern_.empty()) {
        const size_t found = text.find(pattern_, at);
        if (found == std::string_view::npos) break;
        const size_t end = found + pattern_.size();
        if (at != found) parts.add(base + at, base + found, invert_);
        parts.add(base + found, base + end, !invert_);
        at = end;
      }
      if (at != text.size()) parts.add(base + at, base + text.size(), invert_);
    }
    tokens.spans = std::move(out);
    return Status();
  }

 private:
  std::string pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

// Every character that has a property is a match of its own.
class SplitCharacters final : public PreTokenizer {
 public:
  using Property = std::function<bool(uint32_t)>;
  SplitCharacters(Property property, SplitBehavior behavior)
      : property_(std::move(property)), behavior_(behavior) {}

  Status apply(PreTokens& tokens) const override {
    std::vector<Span> out;
    PartMerger parts(behavior_, out);
    for (const Span span : tokens.spans) {
      parts.begin_span();
      size_t rest = span.begin;  // start of what is no match
      for (size_t at = span.begin; at < span.end;) {
        const size_t begin = at;
        if (!property_(next_character(tokens.text, at))) continue;
        if (rest != begin) parts.add(rest, begin, false);
        parts.add(begin, at, true);
        rest = at;
      }
      if (rest != span.end) parts.add(rest, span.end, false);
    }
    tokens.spans = std::move(out);
    return Status();
  }

 private:
  Property property_;
  SplitBehavior behavior_;
};

// Rewrites the text, span by span: `rewrite(span, index, out)` appends.
template <typename Rewrite>
void rewrite_spans(PreTokens& tokens, const Rewrite& rewrite) {
  std::string out;
  out.reserve(tokens.text.size() + tokens.text.size() / 2 + 8);
  for (size_t i = 0; i < tokens.spans.size(); ++i) {
    const auto begin = static_cast<uint32_t>(out.size());
    rewrite(tokens[i], i, out);
    tokens.spans[i] = {begin, static_cast<uint32_t>(out.size())};
  }
  tokens.owned = std::move(out);
  tokens.text = tokens.owned;
}

class AddPrefixSpace final : public PreTokenizer {
 public:
  Status apply(PreTokens& tokens) const override {
    rewrite_spans(tokens, [](std::string_view text, size_t, std::string& out) {
      if (!text.starts_with(' ')) out += ' ';
      out += text;
    });
    return Status();
  }
};

class MapBytes final : public PreTokenizer {
 public:
  Status apply(PreTokens& tokens) const override {
    rewrite_spans(tokens, [](std::string_view text, size_t, std::string& out) {
      append_byte_level(out, text);
    });
    return Status();
  }
};

class Metaspace final : public PreTokenizer {
 public:
  enum class Prepend { kAlways, kFirst, kNever };
  Metaspace(std::string mark, Prepend prepend)
      : mark_(std::move(mark)), prepend_(prepend) {}

  Status apply(PreTokens& tokens) const override {
    rewrite_spans(
        tokens, [&](std::string_view text, size_t i, std::string& out) {
          const bool may =
              prepend_ == Prepend::kAlways ||
              (prepend_ == Prepend::kFirst && tokens.at_start && i == 0);
          if (may && !text.starts_with(mark_) && !text.starts_with(' ')) {
            out += mark_;
          }
          for (const char c : text) {
            if (c == ' ') {
              out += mark_;
            } else {
              out += c;
            }
          }
        });
    return Status();
  }

 private:
  std::string mark_;
  Prepend prepend_;
};

// Builds the steps of one description and adds them to a list.
class Maker {
 public:
  explicit Maker(PreTokenizerSteps& to) : to_(to) {}

  Status add(const Json& d, const std::string& where) {
    if (d.is_null()) return Status();
    std::string type;
    FLASH_RETURN_IF_ERROR(require_field(d, "type", where, type));
    if (type == "Sequence") return add_sequence(d, where);
    if (type == "ByteLevel") return add_byte_level(d, where);
    if (type == "Split") return add_split(d, where);
    if (type == "Metaspace") return add_metaspace(d, where);
    if (type == "Digits") {
      bool individual = false;
      FLASH_RETURN_IF_ERROR(
          read_field(d, "individual_digits", where, individual));
      return add_characters(
          is_numeric,
          individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
    }
    if (type == "Punctuation") {
      SplitBehavior behavior = SplitBehavior::kIsolated;
      FLASH_RETURN_IF_ERROR(read_behavior(d, where, behavior));
      return add_characters(is_punctuation, behavior);
    }
    if (type == "WhitespaceSplit") {
      return add_characters(is_white_space, SplitBehavior::kRemoved);
    }
    if (type == "Whitespace") {
      // \w of Rust's regex, which is not Oniguruma's.
      return add_regex(
          "[[:word:]\\u200C\\u200D]+|[^[:word:]\\u200C\\u200D\\s]+",
          SplitBehavior::kRemoved,
          true,
          where);
    }
    if (type == "BertPreTokenizer") {
      FLASH_RETURN_IF_ERROR(
          add_characters(is_white_space, SplitBehavior::kRemoved));
      return add_characters(is_punctuation, SplitBehavior::kIsolated);
    }
    if (type == "CharDelimiterSplit") return add_delimiter(d, where);
    return unsupported(
        fmt::format("{}: no such pre-tokenizer: {}", where, quote(type)));
  }

  Status add_regex(std::string_view pattern,
                   SplitBehavior behavior,
                   bool invert,
                   const std::string& where) {
    Result<Regex> regex = Regex::compile(pattern);
    if (!regex.ok()) return regex.status().at(where);
    to_.steps.push_back(std::make_unique<SplitRegex>(
        std::move(regex).value(), behavior, invert));
    return Status();
  }

  void add_map_bytes() { to_.steps.push_back(std::make_unique<MapBytes>()); }
  bool last_maps_bytes() const {
    return !to_.steps.empty() &&
           dynamic_cast<const MapBytes*>(to_.steps.back().get()) != nullptr;
  }

 private:
  Status add_sequence(const Json& d, const std::string& where) {
    const auto list = d.find("pretokenizers");
    if (list == d.end() || !list->is_array()) {
      return invalid_input(where + ": 'pretokenizers' must be a list");
    }
    for (size_t i = 0; i < list->size(); ++i) {
      FLASH_RETURN_IF_ERROR(add((*list)[i], fmt::format("{}[{}]", where, i)));
    }
    return Status();
  }

  Status add_byte_level(const Json& d, const std::string& where) {
    bool prefix = true;
    bool use_regex = true;
    FLASH_RETURN_IF_ERROR(read_field(d, "add_prefix_space", where, prefix));
    FLASH_RETURN_IF_ERROR(read_field(d, "use_regex", where, use_regex));
    if (prefix) to_.steps.push_back(std::make_unique<AddPrefixSpace>());
    if (use_regex) {
      FLASH_RETURN_IF_ERROR(
          add_regex(kGpt2Pattern, SplitBehavior::kIsolated, false, where));
    }
    add_map_bytes();
    return Status();
  }

  static Status read_behavior(const Json& d,
                              const std::string& where,
                              SplitBehavior& behavior) {
    std::string name;
    FLASH_RETURN_IF_ERROR(read_field(d, "behavior", where, name));
    if (name.empty()) return Status();
    if (name == "Removed") {
      behavior = SplitBehavior::kRemoved;
    } else if (name == "Isolated") {
      behavior = SplitBehavior::kIsolated;
    } else if (name == "MergedWithPrevious") {
      behavior = SplitBehavior::kMergedWithPrevious;
    } else if (name == "MergedWithNext") {
      behavior = SplitBehavior::kMergedWithNext;
    } else if (name == "Contiguous") {
      behavior = SplitBehavior::kContiguous;
    } else {
      return unsupported(
          fmt::format("{}: no such behavior: {}", where, quote(name)));
    }
    return Status();
  }

  Status add_split(const Json& d, const std::string& where) {
    PatternField pattern;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    FLASH_RETURN_IF_ERROR(read_pattern(d, "pattern", where, pattern));
    FLASH_RETURN_IF_ERROR(read_behavior(d, where, behavior));
    FLASH_RETURN_IF_ERROR(read_field(d, "invert", where, invert));
    if (pattern.regex) {
      return add_regex(pattern.text, behavior, invert, where);
    }
    to_.steps.push_back(
        std::make_unique<SplitString>(pattern.text, behavior, invert));
    return Status();
  }

  Status add_metaspace(const Json& d, const std::string& where) {
    std::string mark = "\xE2\x96\x81";
    std::string scheme = "always";
    bool prefix = true;
    bool split = true;
    FLASH_RETURN_IF_ERROR(read_field(d, "replacement", where, mark));
    FLASH_RETURN_IF_ERROR(read_field(d, "prepend_scheme", where, scheme));
    FLASH_RETURN_IF_ERROR(read_field(d, "add_prefix_space", where, prefix));
    FLASH_RETURN_IF_ERROR(read_field(d, "split", where, split));
    if (mark.empty() || mark.size() != utf8_length(mark[0])) {
      return invalid_input(where + ": 'replacement' must be one character");
    }
    auto prepend = Metaspace::Prepend::kAlways;
    if (scheme == "first") {
      prepend = Metaspace::Prepend::kFirst;
    } else if (scheme == "never" || !prefix) {
      prepend = Metaspace::Prepend::kNever;
    } else if (scheme != "always") {
      return unsupported(
          fmt::format("{}: no such prepend_scheme: {}", where, quote(scheme)));
    }
    to_.steps.push_back(std::make_unique<Metaspace>(mark, prepend));
    if (split) {
      to_.steps.push_back(std::make_unique<SplitString>(
          mark, SplitBehavior::kMergedWithNext, false));
    }
    return Status();
  }

  Status add_delimiter(const Json& d, const std::string& where) {
    std::string delimiter;
    FLASH_RETURN_IF_ERROR(require_field(d, "delimiter", where, delimiter));
    if (delimiter.empty() || delimiter.size() != utf8_length(delimiter[0])) {
      return invalid_input(where + ": 'delimiter' must be one character");
    }
    to_.steps.push_back(std::make_unique<SplitString>(
        delimiter, SplitBehavior::kRemoved, false));
    return Status();
  }

  Status add_characters(bool (*property)(uint32_t), SplitBehavior behavior) {
    to_.steps.push_back(std::make_unique<SplitCharacters>(property, behavior));
    return Status();
  }

  PreTokenizerSteps& to_;
};

void keep_raw_bytes(PreTokenizerSteps& steps, const Maker& maker) {
  if (!maker.last_maps_bytes()) return;
  steps.steps.pop_back();
  steps.raw_bytes = true;
}

}  // namespace

Result<PreTokenizerSteps> make_pre_tokenizer(const Json& description,
                                             const std::string& where,
                                             bool keep_bytes) {
  PreTokenizerSteps steps;
  Maker maker(steps);
  FLASH_RETURN_IF_ERROR(maker.add(description, where));
  if (keep_bytes) keep_raw_bytes(steps, maker);
  return steps;
}

Result<PreTokenizerSteps> make_regex_pre_tokenizer(
    const std::vector<std::string_view>& patterns) {
  PreTokenizerSteps steps;
  Maker maker(steps);
  for (const std::string_view pattern : patterns) {
    FLASH_RETURN_IF_ERROR(maker.add_regex(
        pattern, SplitBehavior::kIsolated, false, "pre-tokenizer"));
  }
  steps.raw_bytes = true;
  return steps;
}

}  // namespace mlx_flash
