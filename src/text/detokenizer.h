// SPDX-License-Identifier: MIT
#pragma once

// Text from ids that come one by one, and the search for stop strings in it.
// Thread-compatible; both belong to one answer.

#include <string>
#include <string_view>
#include <vector>

#include "text/decoder.h"
#include "text/tokenizer.h"

namespace mlx_flash {

// Everything that push() and finish() return, joined, is what
// Tokenizer::decode makes of all ids. Each piece is valid UTF-8: half a
// character waits for the token that completes it.
class Detokenizer {
 public:
  // `tokenizer` outlives the detokenizer.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special);

  // The text that is certain with this token; often empty.
  std::string push(int32_t id);
  // What was still open. No push() after this.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_;
  DecoderRun run_;
};

// Passes text on up to the first stop string, of which no part is let
// through: text that may be the beginning of one is held back. Of several stop
// strings the one that begins first counts, then the longest... see stop().
class StopMatcher {
 public:
  // Empty stop strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  // The part of what was pushed so far that may be shown. Once stopped(),
  // nothing more comes.
  std::string push(std::string_view text);
  // The held back text, if no stop string was found.
  std::string finish();

  bool stopped() const { return stopped_; }
  // The stop string that was found: the first to be complete, and of those
  // that are complete at the same character the one that begins first.
  const std::string& stop() const { return stop_; }

 private:
  size_t held_from() const;

  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
  std::string stop_;
};

}  // namespace mlx_flash
