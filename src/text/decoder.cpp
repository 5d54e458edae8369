// SPDX-License-Identifier: MIT
#include "text/decoder.h"

#include <fmt/format.h>

#include "base/quote.h"
#include "text/bpe.h"
#include "text/json_fields.h"
#include "text/regex.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

using Json = nlohmann::json;

// Bytes of GPT-2's alphabet. A token with any other character is taken as it
// is. All becomes one token.
class ByteLevelStep final : public DecoderStep {
 public:
  void push(Fragment f, const Sink& next) override {
    token_ += f.text;
    if (!f.ends) return;
    bytes_.clear();
    bool known = true;
    for (size_t at = 0; at < token_.size() && known;) {
      const int byte = byte_level_byte(next_character(token_, at));
      known = byte >= 0;
      bytes_ += static_cast<char>(byte);
    }
    emit(known ? bytes_ : token_, false, next);
    token_.clear();
  }
  void finish(const Sink& next) override { emit({}, true, next); }

 private:
  void emit(std::string_view bytes, bool last, const Sink& next) {
    text_.clear();
    utf8_.push(bytes, text_);
    if (last) utf8_.finish(text_);
    if (text_.empty() && !last) return;
    next({text_, !begun_, last});
    begun_ = true;
  }
  std::string token_;
  std::string bytes_;
  std::string text_;
  LossyUtf8 utf8_;
  bool begun_ = false;
};

class FuseStep final : public DecoderStep {
 public:
  void push(Fragment f, const Sink& next) override {
    if (f.text.empty()) return;
    next({f.text, !begun_, false});
    begun_ = true;
  }
  void finish(const Sink& next) override { next({{}, !begun_, true}); }

 private:
  bool begun_ = false;
};

// A run of <0xNN> tokens is one piece of text if its bytes are UTF-8, else a
// U+FFFD for each byte; which of the two shows only at the end of the run.
class ByteFallbackStep final : public DecoderStep {
 public:
  void push(Fragment f, const Sink& next) override {
    if (!f.begins || !f.ends) {  // of a joined token: collected
      token_ += f.text;
      if (!f.ends) return;
      take(token_, next);
      token_.clear();
      return;
    }
    take(f.text, next);
  }
  void finish(const Sink& next) override { flush(next); }

 private:
  static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }
  // u8::from_str_radix, which also takes "+5".
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') {
      return -1;
    }
    const int low = hex(token[4]);
    const int high = token[3] == '+' ? 0 : hex(token[3]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }
  void take(std::string_view token, const Sink& next) {
    const int byte = byte_of(token);
    if (byte >= 0) {
      run_ += static_cast<char>(byte);
      return;
    }
    flush(next);
    next({token});
  }
  void flush(const Sink& next) {
    if (run_.empty()) return;
    if (find_invalid_utf8(run_) == std::string_view::npos) {
      next({run_});
    } else {
      for (size_t i = 0; i < run_.size(); ++i) next({kReplacementCharacter});
    }
    run_.clear();
  }
  std::string token_;
  std::string run_;
};

// Replaces a string within each token. Of a joined token, bytes that may be
// the start of a match wait.
class ReplaceStep final : public DecoderStep {
 public:
  ReplaceStep(std::string from, std::string to)
      : from_(std::move(from)), to_(std::move(to)) {}
  void push(Fragment f, const Sink& next) override {
    begins_ = begins_ || f.begins;
    held_ += f.text;
    std::string out;
    size_t at = 0;
    for (size_t found; (found = held_.find(from_, at)) != std::string::npos;
         at = found + from_.size()) {
      out.append(held_, at, found - at);
      out += to_;
    }
    const size_t keep = f.ends ? 0 : partial_match(at);
    out.append(held_, at, held_.size() - at - keep);
    held_.erase(0, held_.size() - keep);
    if (out.empty() && !f.ends) return;
    next({out, begins_, f.ends});
    begins_ = false;
  }
  void finish(const Sink&) override {}

 private:
  // Length of the longest end of held_[at..] that begins from_.
  size_t partial_match(size_t at) const {
    const std::string_view rest = std::string_view(held_).substr(at);
    size_t n = std::min(rest.size(), from_.size() - 1);
    while (n > 0 &&
           !std::string_view(from_).starts_with(rest.substr(rest.size() - n))) {
      --n;
    }
    return n;
  }
  std::string from_;
  std::string to_;
  std::string held_;
  bool begins_ = false;
};

class ReplaceRegexStep final : public DecoderStep {
 public:
  ReplaceRegexStep(std::shared_ptr<const Regex> from, std::string to)
      : from_(std::move(from)), to_(std::move(to)) {}
  void push(Fragment f, const Sink& next) override {
    token_ += f.text;
    if (!f.ends) return;
    std::string out;
    RegexScanner scanner(*from_);
    scanner.start(token_);
    size_t at = 0;
    for (size_t begin, end; scanner.next(begin, end); at = end) {
      out.append(token_, at, begin - at);
      out += to_;
    }
    out.append(token_, at);
    token_.clear();
    next({out});
  }
  void finish(const Sink&) override {}

 private:
  std::shared_ptr<const Regex> from_;
  std::string to_;
  std::string token_;
};

// Takes up to `start` characters off the front of each token if they are
// `mark`, and up to `stop` off its end.
class StripStep final : public DecoderStep {
 public:
  StripStep(std::string mark, size_t start, size_t stop)
      : mark_(std::move(mark)), start_(start), stop_(stop) {}
  void push(Fragment f, const Sink& next) override {
    if (f.begins) {
      to_strip_ = start_;
      held_ = 0;
      begins_ = true;
    }
    std::string_view text = f.text;
    while (to_strip_ > 0 && !text.empty()) {
      if (text.starts_with(mark_)) {
        text.remove_prefix(mark_.size());
        --to_strip_;
      } else {
        to_strip_ = 0;
      }
    }
    // `held_` marks at the end may be the last ones of the token.
    std::string out;
    size_t marks = 0;
    size_t body = text.size();
    while (marks < stop_ && text.substr(0, body).ends_with(mark_)) {
      body -= mark_.size();
      ++marks;
    }
    if (body > 0) {
      for (; held_ > 0; --held_) out += mark_;
    }
    out += text.substr(0, body);
    held_ += marks;
    for (; held_ > stop_; --held_) out += mark_;
    if (f.ends) held_ = 0;
    if (out.empty() && !f.ends) return;
    next({out, begins_, f.ends});
    begins_ = false;
  }
  void finish(const Sink&) override {}

 private:
  std::string mark_;
  size_t start_;
  size_t stop_;
  size_t to_strip_ = 0;
  size_t held_ = 0;
  bool begins_ = true;
};

// `mark` is a space; none in the first token if the encoder puts one there.
class MetaspaceStep final : public DecoderStep {
 public:
  MetaspaceStep(std::string mark, bool prepended)
      : mark_(std::move(mark)), prepended_(prepended) {}
  void push(Fragment f, const Sink& next) override {
    std::string out;
    for (size_t at = 0; at < f.text.size();) {
      const size_t length = utf8_length(f.text[at]);
      const std::string_view c = f.text.substr(at, length);
      at += length;
      if (c != mark_) {
        out += c;
      } else if (!first_ || !prepended_) {
        out += ' ';
      }
    }
    if (f.ends) first_ = false;
    next({out, f.begins, f.ends});
  }
  void finish(const Sink&) override {}

 private:
  std::string mark_;
  bool prepended_;
  bool first_ = true;
};

// Words end in `suffix`; a space follows all but the last token.
class SuffixStep final : public DecoderStep {
 public:
  explicit SuffixStep(std::string suffix) : suffix_(std::move(suffix)) {}
  void push(Fragment f, const Sink& next) override {
    if (f.begins && have_) flush(" ", next);
    have_ = true;
    token_ += f.text;
  }
  void finish(const Sink& next) override {
    if (have_) flush("", next);
  }

 private:
  void flush(std::string_view replacement, const Sink& next) {
    std::string out;
    size_t at = 0;
    while (!suffix_.empty()) {
      const size_t found = token_.find(suffix_, at);
      if (found == std::string::npos) break;
      out.append(token_, at, found - at);
      out += replacement;
      at = found + suffix_.size();
    }
    out.append(token_, at);
    next({out});
    token_.clear();
  }
  std::string suffix_;
  std::string token_;
  bool have_ = false;
};

// No decoder at all: tokens with spaces between.
class JoinStep final : public DecoderStep {
 public:
  void push(Fragment f, const Sink& next) override {
    if (f.begins && any_) next({" ", false, false});
    any_ = true;
    next({f.text, false, false});
  }
  void finish(const Sink&) override {}

 private:
  bool any_ = false;
};

template <typename Step, typename... Args>
DecoderStepMaker maker(Args... args) {
  return [=] { return std::make_unique<Step>(args...); };
}

class ChainMaker {
 public:
  explicit ChainMaker(std::vector<DecoderStepMaker>& steps) : steps_(steps) {}

  Status add(const Json& d, const std::string& where) {
    std::string type;
    FLASH_RETURN_IF_ERROR(require_field(d, "type", where, type));
    if (type == "Sequence") return add_sequence(d, where);
    if (type == "Replace") return add_replace(d, where);
    if (type == "Strip") return add_strip(d, where);
    if (type == "Metaspace") return add_metaspace(d, where);
    if (type == "ByteLevel") {
      steps_.push_back(maker<ByteLevelStep>());
    } else if (type == "ByteFallback") {
      steps_.push_back(maker<ByteFallbackStep>());
    } else if (type == "Fuse") {
      steps_.push_back(maker<FuseStep>());
    } else if (type == "BPEDecoder") {
      std::string suffix = "</w>";
      FLASH_RETURN_IF_ERROR(read_field(d, "suffix", where, suffix));
      steps_.push_back(maker<SuffixStep>(suffix));
    } else {
      return unsupported(
          fmt::format("{}: no such decoder: {}", where, quote(type)));
    }
    return Status();
  }

 private:
  Status add_sequence(const Json& d, const std::string& where) {
    const auto list = d.find("decoders");
    if (list == d.end() || !list->is_array()) {
      return invalid_input(where + ": 'decoders' must be a list");
    }
    for (size_t i = 0; i < list->size(); ++i) {
      FLASH_RETURN_IF_ERROR(add((*list)[i], fmt::format("{}[{}]", where, i)));
    }
    return Status();
  }

  Status add_replace(const Json& d, const std::string& where) {
    PatternField pattern;
    std::string content;
    FLASH_RETURN_IF_ERROR(read_pattern(d, "pattern", where, pattern));
    FLASH_RETURN_IF_ERROR(require_field(d, "content", where, content));
    if (!pattern.regex) {
      if (pattern.text.empty()) return Status();
      steps_.push_back(maker<ReplaceStep>(pattern.text, content));
      return Status();
    }
    Result<Regex> regex = Regex::compile(pattern.text);
    if (!regex.ok()) return regex.status().at(where);
    auto shared = std::make_shared<const Regex>(std::move(regex).value());
    steps_.push_back(maker<ReplaceRegexStep>(shared, content));
    return Status();
  }

  Status add_strip(const Json& d, const std::string& where) {
    std::string content;
    int64_t start = 0;
    int64_t stop = 0;
    FLASH_RETURN_IF_ERROR(require_field(d, "content", where, content));
    FLASH_RETURN_IF_ERROR(require_field(d, "start", where, start));
    FLASH_RETURN_IF_ERROR(require_field(d, "stop", where, stop));
    if (content.empty() || content.size() != utf8_length(content[0])) {
      return invalid_input(where + ": 'content' must be one character");
    }
    steps_.push_back(maker<StripStep>(
        content, static_cast<size_t>(start), static_cast<size_t>(stop)));
    return Status();
  }

  Status add_metaspace(const Json& d, const std::string& where) {
    std::string mark = "\xE2\x96\x81";
    std::string scheme = "always";
    bool prefix = true;
    FLASH_RETURN_IF_ERROR(read_field(d, "replacement", where, mark));
    FLASH_RETURN_IF_ERROR(read_field(d, "prepend_scheme", where, scheme));
    FLASH_RETURN_IF_ERROR(read_field(d, "add_prefix_space", where, prefix));
    const bool prepended = prefix && scheme != "never";
    steps_.push_back(maker<MetaspaceStep>(mark, prepended));
    return Status();
  }

  std::vector<DecoderStepMaker>& steps_;
};

}  // namespace

Result<DecoderChain> DecoderChain::make(const Json& description,
                                        const std::string& where) {
  DecoderChain chain;
  if (description.is_null()) {
    chain.steps_.push_back(maker<JoinStep>());
    return chain;
  }
  FLASH_RETURN_IF_ERROR(ChainMaker(chain.steps_).add(description, where));
  return chain;
}

DecoderChain DecoderChain::byte_level() {
  DecoderChain chain;
  chain.steps_.push_back(maker<ByteLevelStep>());
  return chain;
}

DecoderChain DecoderChain::sentencepiece(bool strip_first_space) {
  DecoderChain chain;
  chain.steps_.push_back(
      maker<ReplaceStep>(std::string("\xE2\x96\x81"), std::string(" ")));
  chain.steps_.push_back(maker<ByteFallbackStep>());
  chain.steps_.push_back(maker<FuseStep>());
  if (strip_first_space) {
    chain.steps_.push_back(
        maker<StripStep>(std::string(" "), size_t{1}, size_t{0}));
  }
  return chain;
}

DecoderRun::DecoderRun(const DecoderChain& chain) {
  steps_.reserve(chain.steps_.size());
  for (const DecoderStepMaker& make : chain.steps_) steps_.push_back(make());
}

void DecoderRun::pass(size_t step, Fragment fragment, std::string& out) {
  if (step == steps_.size()) {
    out += fragment.text;
    return;
  }
  steps_[step]->push(fragment, [&](Fragment f) { pass(step + 1, f, out); });
}

void DecoderRun::push(std::string_view token, std::string& out) {
  pass(0, {token}, out);
}

void DecoderRun::finish(std::string& out) {
  for (size_t i = 0; i < steps_.size(); ++i) {
    steps_[i]->finish([&](Fragment f) { pass(i + 1, f, out); });
  }
}

}  // namespace mlx_flash
