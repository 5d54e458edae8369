// SPDX-License-Identifier: MIT
#pragma once

// Cuts a text into the words that the model encodes one by one. The steps are
// those of tokenizer.json's "pre_tokenizer"; the semantics are those of
// Hugging Face's tokenizers (tokenizers/src/pre_tokenizers).
//
// Immutable; safe to use from any thread.

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mlx_flash {

// A text and the parts of it that are left, in order; never empty parts.
struct PreTokens {
  struct Span {
    uint32_t begin;
    uint32_t end;
  };
  std::string_view text;  // valid UTF-8, points into `owned` or elsewhere
  std::string owned;      // a rewritten text
  std::vector<Span> spans;
  bool at_start = false;  // the first span begins the user's text

  std::string_view operator[](size_t i) const {
    return text.substr(spans[i].begin, spans[i].end - spans[i].begin);
  }
};

// What becomes of the matches of a Split.
enum class SplitBehavior {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual Status apply(PreTokens& tokens) const = 0;
};

// The steps in order. `raw_bytes`: the last step was ByteLevel's mapping of
// bytes to characters, which is left out because `keep_bytes` was asked for.
struct PreTokenizerSteps {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  bool raw_bytes = false;

  Status apply(PreTokens& tokens) const {
    for (const auto& step : steps) FLASH_RETURN_IF_ERROR(step->apply(tokens));
    return Status();
  }
};

// From tokenizer.json; null gives no steps.
Result<PreTokenizerSteps> make_pre_tokenizer(const nlohmann::json& description,
                                             const std::string& where,
                                             bool keep_bytes);

// One Split (isolated) for each regular expression, then bytes.
Result<PreTokenizerSteps> make_regex_pre_tokenizer(
    const std::vector<std::string_view>& patterns);

}  // namespace mlx_flash
