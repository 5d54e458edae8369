// SPDX-License-Identifier: MIT
#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

#include "text/utf8.h"

namespace mlx_flash {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581
constexpr uint32_t kSpaceMarkCharacter = 0x2581;
constexpr uint32_t kEnd = UINT32_MAX;
constexpr size_t kShortWord = 24;  // symbols; a plain scan is faster below
constexpr size_t kNoCutMax = 64;

// Printable Latin-1 stands for itself; the rest is moved to U+0100 and up, in
// order (GPT-2's encoder.py, bytes_to_unicode).
bool stands_for_itself(uint32_t b) {
  return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) ||
         (b >= 0xAE && b <= 0xFF);
}

struct ByteAlphabet {
  std::array<uint32_t, 256> character{};
  std::array<int16_t, 0x144> byte{};
};

constexpr uint32_t kMovedBytes = 68;

ByteAlphabet make_byte_alphabet() {
  ByteAlphabet a;
  a.byte.fill(-1);
  uint32_t moved = 0;
  for (uint32_t b = 0; b < 256; ++b) {
    const uint32_t c = stands_for_itself(b) ? b : 0x100 + moved++;
    a.character[b] = c;
    a.byte[c] = static_cast<int16_t>(b);
  }
  FLASH_CHECK(moved == kMovedBytes);
  return a;
}

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet = make_byte_alphabet();
  return alphabet;
}

}  // namespace

uint32_t byte_level_character(unsigned char byte) {
  return byte_alphabet().character[byte];
}

int byte_level_byte(uint32_t character) {
  const ByteAlphabet& a = byte_alphabet();
  return character < a.byte.size() ? a.byte[character] : -1;
}

void append_byte_level(std::string& out, std::string_view bytes) {
  const ByteAlphabet& a = byte_alphabet();
  for (const char b : bytes) {
    append_utf8(out, a.character[static_cast<unsigned char>(b)]);
  }
}

void MergeTable::reset(size_t count) {
  slots_.assign(count + count / 3 + 1, Slot());
}

size_t MergeTable::slot_of(int32_t left, int32_t right) const {
  uint64_t h = static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 |
               static_cast<uint32_t>(right);
  h *= 0x9E3779B97F4A7C15u;
  h ^= h >> 32;
  h *= 0xD6E8FEB86659FD93u;
  return static_cast<size_t>((h >> 32) * slots_.size() >> 32);
}

void MergeTable::add(int32_t left, int32_t right, Merge merge) {
  size_t slot = slot_of(left, right);
  while (slots_[slot].left >= 0 &&
         (slots_[slot].left != left || slots_[slot].right != right)) {
    if (++slot == slots_.size()) slot = 0;
  }
  slots_[slot] = {left, right, merge};
}

MergeTable::Merge MergeTable::find(int32_t left, int32_t right) const {
  size_t slot = slot_of(left, right);
  while (slots_[slot].left >= 0) {
    if (slots_[slot].left == left && slots_[slot].right == right) {
      return slots_[slot].merge;
    }
    if (++slot == slots_.size()) slot = 0;
  }
  return {kNoRank, Vocab::kNone};
}

BpeModel::Scratch::Scratch(size_t text_bytes) {
  cache_.resize(std::clamp<size_t>(std::bit_ceil(text_bytes / 8), 16, 8192));
}

Result<BpeModel> BpeModel::create(Vocab vocab,
                                  const std::vector<MergePair>& merges,
                                  BpeOptions options) {
  BpeModel model;
  model.vocab_ = std::move(vocab);
  model.options_ = std::move(options);
  FLASH_RETURN_IF_ERROR(model.prepare());
  model.merges_.reset(merges.size());
  const std::string_view prefix = model.options_.continuing_subword_prefix;
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = merges[i];
    std::string_view tail = model.vocab_[right];
    if (tail.size() < prefix.size()) {
      return invalid_input(
          fmt::format("merge {}: '{}' lacks the prefix of continued words '{}'",
                      i,
                      tail,
                      prefix));
    }
    tail.remove_prefix(prefix.size());
    joined.assign(model.vocab_[left]);
    joined += tail;
    const int32_t result = model.vocab_.find(joined);
    if (result == Vocab::kNone) {
      return invalid_input(fmt::format(
          "merge {} makes '{}', which is not in the vocabulary", i, joined));
    }
    model.merges_.add(left, right, {static_cast<uint32_t>(i), result});
  }
  return model;
}

Result<BpeModel> BpeModel::create_ranked(Vocab vocab,
                                         const std::vector<uint32_t>& rank,
                                         BpeOptions options) {
  BpeModel model;
  model.vocab_ = std::move(vocab);
  model.options_ = std::move(options);
  FLASH_RETURN_IF_ERROR(model.prepare());
  struct Found {
    MergePair pair;
    int32_t result;
  };
  std::vector<Found> found;
  for (size_t i = 0; i < model.vocab_.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    if (rank[i] == MergeTable::kNoRank) continue;
    const std::string_view s = model.vocab_[id];
    if (model.vocab_.find(s) != id) continue;  // a later one of equals
    for (size_t cut = 0; cut < s.size();) {
      cut += utf8_length(s[cut]);
      if (cut >= s.size()) break;
      const int32_t left = model.vocab_.find(s.substr(0, cut));
      if (left == Vocab::kNone) continue;
      const int32_t right = model.vocab_.find(s.substr(cut));
      if (right == Vocab::kNone) continue;
      found.push_back({{left, right}, id});
    }
  }
  model.merges_.reset(found.size());
  for (const Found& f : found) {
    model.merges_.add(f.pair.left,
                      f.pair.right,
                      {rank[static_cast<size_t>(f.result)], f.result});
  }
  return model;
}

Status BpeModel::prepare() {
  bool all_bytes = true;
  fallback_ = true;
  std::string s;
  for (uint32_t b = 0; b < 256; ++b) {
    s.clear();
    append_utf8(s, byte_level_character(static_cast<unsigned char>(b)));
    byte_ids_[b] = vocab_.find(s);
    all_bytes = all_bytes && byte_ids_[b] != Vocab::kNone;
    fallback_ids_[b] = options_.byte_fallback
                           ? vocab_.find(fmt::format("<0x{:02X}>", b))
                           : Vocab::kNone;
    fallback_ = fallback_ && fallback_ids_[b] != Vocab::kNone;
    if (b < 128) {
      const char c = static_cast<char>(b);
      ascii_ids_[b] = vocab_.find(std::string_view(&c, 1));
    }
  }
  const bool bytes_vanish =
      options_.unk_token.empty() && !options_.byte_fallback;
  byte_level_ = (all_bytes || bytes_vanish) &&
                options_.continuing_subword_prefix.empty() &&
                options_.end_of_word_suffix.empty();
  if (!options_.unk_token.empty()) {
    unk_id_ = vocab_.find(options_.unk_token);
    if (unk_id_ == Vocab::kNone) {
      return invalid_input(fmt::format(
          "unk_token '{}' is not in the vocabulary", options_.unk_token));
    }
  }
  find_space_cuts();
  return Status();
}

// A text without spaces between words (▁ is part of the words) would be one
// word of the text's length. Where no token has ▁ behind character c, no merge
// crosses "c▁", so that the text can be cut there and words looked up one by
// one, with the same result.
void BpeModel::find_space_cuts() {
  cuts_at_space_ = options_.continuing_subword_prefix.empty() &&
                   options_.end_of_word_suffix.empty() &&
                   vocab_.find(kSpaceMark) != Vocab::kNone;
  for (size_t i = 0; cuts_at_space_ && i < vocab_.size(); ++i) {
    const std::string_view s = vocab_[static_cast<int32_t>(i)];
    size_t at = s.find(kSpaceMark, 1);
    for (; at != std::string_view::npos; at = s.find(kSpaceMark, at + 3)) {
      const uint32_t c = last_character(s.substr(0, at));
      if (c == kSpaceMarkCharacter) continue;
      const auto place =
          std::lower_bound(no_cut_after_.begin(), no_cut_after_.end(), c);
      if (place != no_cut_after_.end() && *place == c) continue;
      no_cut_after_.insert(place, c);
      // '>' ends the tokens of byte fallback, and as a rule <unk>.
      if (c == '>' || no_cut_after_.size() > kNoCutMax) cuts_at_space_ = false;
    }
  }
  if (unk_id_ != Vocab::kNone && !options_.unk_token.ends_with('>')) {
    cuts_at_space_ = false;
  }
  if (!cuts_at_space_) no_cut_after_.clear();
}

bool BpeModel::may_cut_before_space(std::string_view text, size_t at) const {
  const uint32_t c = last_character(text.substr(0, at));
  return c != kSpaceMarkCharacter &&
         !std::binary_search(no_cut_after_.begin(), no_cut_after_.end(), c);
}

int32_t BpeModel::token_of_word(std::string_view word,
                                bool raw,
                                Scratch& scratch) const {
  if (!raw) return vocab_.find(word);
  scratch.text_.clear();
  append_byte_level(scratch.text_, word);
  return vocab_.find(scratch.text_);
}

void BpeModel::encode_word(std::string_view word,
                           bool raw,
                           Scratch& scratch,
                           std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (raw || !cuts_at_space_ || word.size() <= Scratch::Cached::kBytesMax) {
    encode_cached(word, raw, scratch, ids);
    return;
  }
  if (options_.ignore_merges) {
    const int32_t id = vocab_.find(word);
    if (id != Vocab::kNone) {
      ids.push_back(id);
      return;
    }
  }
  size_t begin = 0;
  size_t at = word.find(kSpaceMark, 1);
  for (; at != std::string_view::npos; at = word.find(kSpaceMark, at + 3)) {
    if (!may_cut_before_space(word, at)) continue;
    encode_cached(word.substr(begin, at - begin), raw, scratch, ids);
    begin = at;
  }
  encode_cached(word.substr(begin), raw, scratch, ids);
}

void BpeModel::encode_cached(std::string_view word,
                             bool raw,
                             Scratch& scratch,
                             std::vector<int32_t>& ids) const {
  using Cached = Scratch::Cached;
  if (word.size() > Cached::kBytesMax) {
    encode_uncached(word, raw, scratch, ids);
    return;
  }
  uint64_t h = word.size();
  for (size_t i = 0; i < word.size(); i += 8) {
    uint64_t part = 0;
    std::memcpy(&part, word.data() + i, std::min<size_t>(8, word.size() - i));
    h = (h ^ part) * 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
  }
  Cached& slot = scratch.cache_[h & (scratch.cache_.size() - 1)];
  if (slot.bytes == word.size() &&
      std::memcmp(slot.word, word.data(), word.size()) == 0) {
    ids.insert(ids.end(), slot.id, slot.id + slot.ids);
    return;
  }
  const size_t first = ids.size();
  encode_uncached(word, raw, scratch, ids);
  const size_t count = ids.size() - first;
  if (count > Cached::kIdsMax) return;
  slot.bytes = static_cast<uint8_t>(word.size());
  slot.ids = static_cast<uint8_t>(count);
  std::memcpy(slot.word, word.data(), word.size());
  std::copy(ids.begin() + static_cast<ptrdiff_t>(first), ids.end(), slot.id);
}

void BpeModel::encode_uncached(std::string_view word,
                               bool raw,
                               Scratch& scratch,
                               std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    const int32_t id = token_of_word(word, raw, scratch);
    if (id != Vocab::kNone) {
      ids.push_back(id);
      return;
    }
  }
  scratch.symbols_.clear();
  if (raw) {
    for (const char b : word) {
      const int32_t id = byte_ids_[static_cast<unsigned char>(b)];
      if (id != Vocab::kNone) scratch.symbols_.push_back({id, 0, 0, {}});
    }
  } else {
    split_characters(word, scratch);
  }
  if (scratch.symbols_.size() <= kShortWord) {
    merge_short(scratch, ids);
  } else {
    merge_long(scratch, ids);
  }
}

// The tokens of single characters. Follows Hugging Face's order of events:
// pending unknown characters are written when the next known character comes,
// which is after any byte tokens between them.
void BpeModel::split_characters(std::string_view word, Scratch& scratch) const {
  const auto add = [&](int32_t id) {
    scratch.symbols_.push_back({id, 0, 0, {}});
  };
  const std::string& prefix = options_.continuing_subword_prefix;
  const std::string& suffix = options_.end_of_word_suffix;
  const bool decorated = !prefix.empty() || !suffix.empty();
  bool unk_pending = false;
  for (size_t at = 0; at < word.size();) {
    const size_t length = utf8_length(word[at]);
    std::string_view s = word.substr(at, length);
    if (decorated) {
      scratch.text_.clear();
      if (at > 0) scratch.text_ += prefix;
      scratch.text_ += s;
      if (at + length == word.size()) scratch.text_ += suffix;
      s = scratch.text_;
    }
    const int32_t id =
        s.size() == 1 ? ascii_ids_[static_cast<uint8_t>(s[0])] : vocab_.find(s);
    at += length;
    if (id != Vocab::kNone) {
      if (unk_pending) add(unk_id_);
      unk_pending = false;
      add(id);
      continue;
    }
    if (options_.byte_fallback) {
      const auto known = [&](char b) {
        return fallback_ids_[static_cast<unsigned char>(b)] != Vocab::kNone;
      };
      if (fallback_ || std::all_of(s.begin(), s.end(), known)) {
        for (const char b : s) {
          add(fallback_ids_[static_cast<unsigned char>(b)]);
        }
        continue;
      }
    }
    if (unk_id_ == Vocab::kNone) continue;
    if (unk_pending && !options_.fuse_unk) add(unk_id_);
    unk_pending = true;
  }
  if (unk_pending) add(unk_id_);
}

void BpeModel::merge_short(Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols_;
  size_t n = symbols.size();
  for (size_t i = 0; i + 1 < n; ++i) {
    symbols[i].merge = merges_.find(symbols[i].id, symbols[i + 1].id);
  }
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (symbols[i].merge.rank < symbols[best].merge.rank) best = i;
    }
    if (symbols[best].merge.rank == MergeTable::kNoRank) break;
    symbols[best].id = symbols[best].merge.result;
    for (size_t i = best + 1; i + 1 < n; ++i) symbols[i] = symbols[i + 1];
    --n;
    if (best > 0) {
      symbols[best - 1].merge =
          merges_.find(symbols[best - 1].id, symbols[best].id);
    }
    if (best + 1 < n) {
      symbols[best].merge =
          merges_.find(symbols[best].id, symbols[best + 1].id);
    }
  }
  for (size_t i = 0; i < n; ++i) ids.push_back(symbols[i].id);
}

// With a queue of candidates. An entry is stale when the symbol at its index
// is gone or has another rank by now; a symbol only grows, so that it cannot
// come back to a pair it had.
void BpeModel::merge_long(Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols_;
  auto& queue = scratch.queue_;
  const auto n = static_cast<uint32_t>(symbols.size());
  queue.clear();
  const auto look = [&](uint32_t i, bool push) {
    auto& s = symbols[i];
    s.merge = s.next == kEnd ? MergeTable::Merge{MergeTable::kNoRank, -1}
                             : merges_.find(s.id, symbols[s.next].id);
    if (s.merge.rank == MergeTable::kNoRank) return;
    queue.push_back(uint64_t{s.merge.rank} << 32 | i);
    if (push) std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  for (uint32_t i = 0; i < n; ++i) {
    symbols[i].previous = i == 0 ? kEnd : i - 1;
    symbols[i].next = i + 1 == n ? kEnd : i + 1;
  }
  for (uint32_t i = 0; i < n; ++i) look(i, false);
  std::make_heap(queue.begin(), queue.end(), std::greater<>());
  while (!queue.empty()) {
    const auto rank = static_cast<uint32_t>(queue.front() >> 32);
    const auto i = static_cast<uint32_t>(queue.front());
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    queue.pop_back();
    auto& s = symbols[i];
    if (s.id == Vocab::kNone || s.merge.rank != rank) continue;
    auto& gone = symbols[s.next];
    s.id = s.merge.result;
    s.next = gone.next;
    if (s.next != kEnd) symbols[s.next].previous = i;
    gone.id = Vocab::kNone;
    look(i, true);
    if (s.previous != kEnd) look(s.previous, true);
  }
  for (uint32_t i = 0; i != kEnd; i = symbols[i].next) {
    ids.push_back(symbols[i].id);
  }
}

}  // namespace mlx_flash
