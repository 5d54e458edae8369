// SPDX-License-Identifier: MIT
#pragma once

// Regular expressions as tokenizers write them: Oniguruma's Ruby syntax (what
// Hugging Face's tokenizers run), translated for PCRE2 with Unicode
// properties. What differs between the two is spelled out in regex_syntax.cpp.
//
// A Regex is immutable and may be shared by threads; a Scanner belongs to one.

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace mlx_flash {

// The pattern in PCRE2's syntax. Anything it does not know passes unchanged,
// so that the compiler judges it.
Result<std::string> translate_regex(std::string_view pattern);

class Regex {
 public:
  static Result<Regex> compile(std::string_view pattern);

 private:
  friend class RegexScanner;
  struct Free {
    void operator()(void* code) const;
  };
  Regex() = default;

  std::unique_ptr<void, Free> code_;  // pcre2_code
  std::string pattern_;
};

// All matches in a text, from left to right. `regex` outlives it.
class RegexScanner {
 public:
  explicit RegexScanner(const Regex& regex);
  ~RegexScanner();
  RegexScanner(const RegexScanner&) = delete;
  RegexScanner& operator=(const RegexScanner&) = delete;

  // Begins with another text, which is valid UTF-8 and outlives the scan.
  void start(std::string_view text);

  // The next match, or false: no more, or status() says what went wrong (a
  // pattern that needs too many steps on this text).
  bool next(size_t& begin, size_t& end);

  const Status& status() const { return status_; }

 private:
  bool grow_stack();

  const Regex& regex_;
  void* match_data_;
  void* context_ = nullptr;  // with the larger stack, once it was needed
  void* stack_ = nullptr;
  std::string_view text_;
  size_t at_ = 0;               // where the next search starts
  size_t last_end_ = SIZE_MAX;  // of the match before
  Status status_;
};

}  // namespace mlx_flash
