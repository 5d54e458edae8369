// SPDX-License-Identifier: MIT
#include "text/regex.h"

#include <fmt/format.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/utf8.h"

namespace mlx_flash {
namespace {

constexpr size_t kPatternBytesMax = 64 << 10;
constexpr size_t kStackBytesMin = 64 << 10;
constexpr size_t kStackBytesMax = 8 << 20;
constexpr uint32_t kMatchLimit = 20'000'000;
constexpr uint32_t kHeapLimitKib = 16 << 10;

std::string error_text(int code) {
  PCRE2_UCHAR buffer[160];
  if (pcre2_get_error_message(code, buffer, sizeof(buffer)) < 0) {
    return fmt::format("error {}", code);
  }
  return reinterpret_cast<const char*>(buffer);
}

const pcre2_code* as_code(const void* code) {
  return static_cast<const pcre2_code*>(code);
}

}  // namespace

void Regex::Free::operator()(void* code) const {
  pcre2_code_free(static_cast<pcre2_code*>(code));
}

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kPatternBytesMax) {
    return invalid_input(
        fmt::format("a regular expression of {} bytes (the "
                    "limit is {})",
                    pattern.size(),
                    kPatternBytesMax));
  }
  FLASH_ASSIGN_OR_RETURN(const std::string translated,
                         translate_regex(pattern));
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                    translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
                    &error,
                    &offset,
                    context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    return invalid_input(
        fmt::format("cannot use the regular expression '{}': {} (at byte {} of "
                    "its translation '{}')",
                    pattern,
                    error_text(error),
                    offset,
                    translated));
  }
  Regex regex;
  regex.code_.reset(code);
  regex.pattern_ = pattern;
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it: the same, slower
  return regex;
}

RegexScanner::RegexScanner(const Regex& regex)
    : regex_(regex),
      match_data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  auto* context = static_cast<pcre2_match_context*>(context_);
  pcre2_set_match_limit(context, kMatchLimit);
  pcre2_set_heap_limit(context, kHeapLimitKib);
}

RegexScanner::~RegexScanner() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_));
  pcre2_match_context_free(static_cast<pcre2_match_context*>(context_));
  pcre2_jit_stack_free(static_cast<pcre2_jit_stack*>(stack_));
}

void RegexScanner::start(std::string_view text) {
  text_ = text;
  at_ = 0;
  last_end_ = SIZE_MAX;
}

// The machine's stack is the default; long texts may need more.
bool RegexScanner::grow_stack() {
  if (stack_ != nullptr) return false;
  stack_ = pcre2_jit_stack_create(kStackBytesMin, kStackBytesMax, nullptr);
  if (stack_ == nullptr) return false;
  pcre2_jit_stack_assign(
      static_cast<pcre2_match_context*>(context_), nullptr, stack_);
  return true;
}

bool RegexScanner::next(size_t& begin, size_t& end) {
  auto* data = static_cast<pcre2_match_data*>(match_data_);
  while (at_ <= text_.size() && status_.ok()) {
    const int found = pcre2_match(as_code(regex_.code_.get()),
                                  reinterpret_cast<PCRE2_SPTR>(text_.data()),
                                  text_.size(),
                                  at_,
                                  PCRE2_NO_UTF_CHECK,
                                  data,
                                  static_cast<pcre2_match_context*>(context_));
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && grow_stack()) continue;
    if (found < 0) {
      status_ = exhausted(
          fmt::format("the regular expression '{}' gave up at byte {} of the "
                      "text: {}",
                      regex_.pattern_,
                      at_,
                      error_text(found)));
      return false;
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data);
    begin = range[0];
    end = range[1];
    // An empty match moves on by a character, and does not count directly
    // behind another match. (\K can even put begin behind end.)
    const bool empty = begin >= end;
    if (!empty) {
      at_ = end;
    } else {
      at_ = end < text_.size() ? end + utf8_length(text_[end]) : end + 1;
    }
    const bool counts = begin <= end && !(empty && last_end_ == end);
    if (!counts) continue;
    last_end_ = end;
    return true;
  }
  return false;
}

}  // namespace mlx_flash
