// SPDX-License-Identifier: MIT
#pragma once

// Byte-pair encoding: a word is cut into characters (or bytes), then the pair
// with the lowest rank is joined, the leftmost of equals first, until no pair
// has a rank.
//
// One engine serves all that is called BPE: byte-level (GPT-2 and after),
// SentencePiece's with byte fallback (ranks come from scores) and tiktoken's
// (ranks come from the joined token). Time is n log n in the length of a word.
//
// Immutable once built; safe to use from any thread, with a scratch each.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "text/vocab.h"

namespace mlx_flash {

// GPT-2's alphabet: a visible character for every byte.
// Character of a byte, and byte of a character (-1: not in the alphabet).
uint32_t byte_level_character(unsigned char byte);
int byte_level_byte(uint32_t character);
void append_byte_level(std::string& out, std::string_view bytes);

struct BpeOptions {
  bool byte_fallback = false;  // unknown characters become <0xNN> tokens
  bool ignore_merges = false;  // a word that is a token needs no merging
  bool fuse_unk = false;       // neighbouring unknown characters are one
  std::string unk_token;       // empty: unknown characters vanish
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
};

// Which token two neighbours become, and how early.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t result;
  };
  static constexpr uint32_t kNoRank = UINT32_MAX;

  // Room for `count` merges; drops what was there.
  void reset(size_t count);
  // A pair that comes twice keeps the last. REQUIRES: room is left.
  void add(int32_t left, int32_t right, Merge merge);
  Merge find(int32_t left, int32_t right) const;  // rank kNoRank: none

  size_t memory_bytes() const { return slots_.capacity() * sizeof(Slot); }

 private:
  struct Slot {
    int32_t left = -1;  // -1: free
    int32_t right = 0;
    Merge merge = {kNoRank, -1};
  };
  size_t slot_of(int32_t left, int32_t right) const;

  std::vector<Slot> slots_;
};

// A pair of ids that a merge joins.
struct MergePair {
  int32_t left;
  int32_t right;
};

class BpeModel {
 public:
  // Working memory of one encode call, reused from word to word.
  class Scratch {
   public:
    // `text_bytes`: how much will be encoded; sizes the cache of words.
    explicit Scratch(size_t text_bytes);

   private:
    friend class BpeModel;
    struct Symbol {
      int32_t id;
      uint32_t previous;  // index, kEnd: none
      uint32_t next;
      MergeTable::Merge merge;  // with the next one
    };
    // A word and its ids, in one cache line.
    struct Cached {
      static constexpr size_t kBytesMax = 22;
      static constexpr size_t kIdsMax = 10;
      uint8_t bytes = 0;
      uint8_t ids = 0;
      char word[kBytesMax];
      int32_t id[kIdsMax];
    };
    std::vector<Symbol> symbols_;
    std::vector<uint64_t> queue_;  // rank << 32 | index
    std::vector<Cached> cache_;    // direct-mapped, a power of two
    std::string text_;
  };

  // Merges in the order of their rank; the result of each is the token that
  // has the joined string.
  static Result<BpeModel> create(Vocab vocab,
                                 const std::vector<MergePair>& merges,
                                 BpeOptions options);

  // All merges the vocabulary allows: any two tokens whose joined string is
  // one, ranked by `rank[id]` of the joined token (kNoRank: never joined).
  static Result<BpeModel> create_ranked(Vocab vocab,
                                        const std::vector<uint32_t>& rank,
                                        BpeOptions options);

  const Vocab& vocab() const { return vocab_; }

  // Whether words may be given as raw bytes: each has a token, or vanishes
  // (SmolLM's vocabulary lacks bytes that UTF-8 hardly uses).
  bool byte_level() const { return byte_level_; }

  // Appends the ids of a word. `raw`: the bytes stand for themselves in
  // GPT-2's alphabet; else the word is UTF-8 of the vocabulary's own
  // characters. REQUIRES: byte_level() if raw.
  void encode_word(std::string_view word,
                   bool raw,
                   Scratch& scratch,
                   std::vector<int32_t>& ids) const;

  size_t memory_bytes() const {
    return vocab_.memory_bytes() + merges_.memory_bytes();
  }

 private:
  BpeModel() = default;

  Status prepare();  // tables derived from vocab_ and options_
  void find_space_cuts();
  bool may_cut_before_space(std::string_view text, size_t at) const;
  void encode_cached(std::string_view word,
                     bool raw,
                     Scratch& scratch,
                     std::vector<int32_t>& ids) const;
  void encode_uncached(std::string_view word,
                       bool raw,
                       Scratch& scratch,
                       std::vector<int32_t>& ids) const;
  void split_characters(std::string_view word, Scratch& scratch) const;
  int32_t token_of_word(std::string_view word,
                        bool raw,
                        Scratch& scratch) const;
  void merge_short(Scratch& scratch, std::vector<int32_t>& ids) const;
  void merge_long(Scratch& scratch, std::vector<int32_t>& ids) const;

  Vocab vocab_;
  MergeTable merges_;
  BpeOptions options_;
  int32_t unk_id_ = Vocab::kNone;
  bool byte_level_ = false;
  bool fallback_ = false;                    // all 256 <0xNN> are tokens
  std::array<int32_t, 256> byte_ids_{};      // of one byte in GPT-2's alphabet
  std::array<int32_t, 256> fallback_ids_{};  // of <0xNN>, kNone: no token
  std::array<int32_t, 128> ascii_ids_{};     // of a one-character string

  // Whether a word can be cut before U+2581 (the space of SentencePiece): no
  // token may have that character behind another one, save those listed.
  bool cuts_at_space_ = false;
  std::vector<uint32_t> no_cut_after_;  // sorted
};

}  // namespace mlx_flash
