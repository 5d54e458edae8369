// SPDX-License-Identifier: MIT
#include "text/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/quote.h"
#include "text/utf8.h"
#include "text/vocab.h"

namespace mlx_flash {
namespace {

constexpr size_t kContentBytesMax = 4096;

// Where the white space at the end of `text` begins.
size_t trailing_space(std::string_view text) {
  size_t at = text.size();
  while (at > 0) {
    size_t begin = at - 1;
    while (begin > 0 &&
           (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) {
      --begin;
    }
    size_t next = begin;
    if (!is_white_space(next_character(text, next))) break;
    at = begin;
  }
  return at;
}

// Where the white space from `at` on ends.
size_t skip_space(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (!is_white_space(next_character(text, next))) break;
    at = next;
  }
  return at;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word_character(last_character(text.substr(0, begin)))) {
    return false;
  }
  return end == text.size() || !is_word_character(next_character(text, end));
}

}  // namespace

Status AddedTokens::add(std::string_view content, AddedToken token) {
  if (content.empty()) return invalid_input("an added token is empty");
  if (content.size() > kContentBytesMax) {
    return invalid_input(fmt::format(
        "an added token of {} bytes: {}", content.size(), quote(content)));
  }
  if (token.id < 0 || token.id > kTokenIdMax) {
    return invalid_input(fmt::format(
        "added token {}: id {} is out of range", quote(content), token.id));
  }
  contents_.push_back(content);
  tokens_.push_back(token);
  highest_id_ = std::max(highest_id_, token.id);
  return Status();
}

Status AddedTokens::prepare(const Normalizer* normalizer) {
  const auto count = static_cast<uint32_t>(tokens_.size());
  by_id_.resize(count);
  for (uint32_t i = 0; i < count; ++i) by_id_[i] = i;
  by_content_ = by_id_;
  std::sort(by_content_.begin(), by_content_.end(), [&](auto a, auto b) {
    const int order = contents_[a].compare(contents_[b]);
    return order != 0 ? order < 0 : a < b;
  });
  const auto end =
      std::unique(by_content_.begin(), by_content_.end(), [&](auto a, auto b) {
        return contents_[a] == contents_[b];
      });
  by_content_.erase(end, by_content_.end());
  by_id_ = by_content_;
  std::sort(by_id_.begin(), by_id_.end(), [&](auto a, auto b) {
    return tokens_[a].id < tokens_[b].id;
  });
  for (size_t i = 1; i < by_id_.size(); ++i) {
    if (tokens_[by_id_[i]].id != tokens_[by_id_[i - 1]].id) continue;
    return invalid_input(fmt::format("added tokens {} and {} share the id {}",
                                     quote(contents_[by_id_[i - 1]]),
                                     quote(contents_[by_id_[i]]),
                                     tokens_[by_id_[i]].id));
  }
  for (const uint32_t i : by_id_) {
    Side& to = tokens_[i].normalized ? normalized_ : raw_;
    std::string pattern(contents_[i]);
    if (tokens_[i].normalized && normalizer != nullptr) {
      FLASH_RETURN_IF_ERROR(normalizer->apply(pattern));
    }
    if (pattern.empty()) continue;
    to.patterns.push_back(pattern);
    to.tokens.push_back(i);
  }
  for (Side* to : {&raw_, &normalized_}) {
    std::vector<uint32_t> numbers(to->patterns.size());
    for (uint32_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
    to->any = !numbers.empty();
    to->index.build(to->patterns, std::move(numbers));
  }
  return Status();
}

void AddedTokens::split(std::string_view text,
                        bool normalized,
                        std::vector<Part>& parts) const {
  const Side& s = side(normalized);
  size_t rest = 0;  // start of what no token has taken
  for (size_t at = 0; s.any && at < text.size();) {
    if (!s.index.starts_with(static_cast<unsigned char>(text[at]))) {
      ++at;
      continue;
    }
    int64_t best = -1;  // the longest
    size_t best_end = at;
    PrefixIndex::Range range = s.index.start();
    for (size_t i = at; i < text.size(); ++i) {
      range =
          s.index.step(s.patterns, range, static_cast<unsigned char>(text[i]));
      if (range.empty()) break;
      const int64_t match = s.index.match(s.patterns, range);
      if (match < 0) continue;
      best = match;
      best_end = i + 1;
    }
    if (best < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[s.tokens[static_cast<size_t>(best)]];
    size_t begin = at;
    size_t end = best_end;
    at = best_end;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.left_strip) {
      begin = std::max(trailing_space(text.substr(0, begin)), rest);
    }
    if (token.right_strip) end = skip_space(text, end);
    if (rest < begin) parts.push_back({rest, begin, -1});
    parts.push_back({begin, end, token.id});
    rest = end;
  }
  if (rest < text.size()) parts.push_back({rest, text.size(), -1});
}

int64_t AddedTokens::find_id(int32_t id) const {
  const auto found = std::lower_bound(
      by_id_.begin(), by_id_.end(), id, [&](auto a, int32_t b) {
        return tokens_[a].id < b;
      });
  if (found == by_id_.end() || tokens_[*found].id != id) return -1;
  return *found;
}

int64_t AddedTokens::find_content(std::string_view content) const {
  const auto found = std::lower_bound(
      by_content_.begin(), by_content_.end(), content, [&](auto a, auto b) {
        return contents_[a] < b;
      });
  if (found == by_content_.end() || contents_[*found] != content) return -1;
  return *found;
}

size_t AddedTokens::memory_bytes() const {
  size_t bytes = contents_.memory_bytes() +
                 tokens_.capacity() * sizeof(AddedToken) +
                 (by_id_.capacity() + by_content_.capacity()) * 4;
  for (const Side* s : {&raw_, &normalized_}) {
    bytes += s->index.memory_bytes() + s->patterns.memory_bytes() +
             s->tokens.capacity() * 4;
  }
  return bytes;
}

}  // namespace mlx_flash
