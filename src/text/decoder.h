// SPDX-License-Identifier: MIT
#pragma once

// From tokens back to text: the steps of tokenizer.json's "decoder", as a
// chain through which tokens are pushed one by one. A step hands on only what
// later tokens cannot change, so that the same chain serves whole texts and
// streams, and both give the same text.
//
// A DecoderChain is a description and immutable; a DecoderRun is the state of
// one text (thread-compatible).

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mlx_flash {

// Part of a token on its way through the chain. Steps that join tokens
// (ByteLevel, Fuse) turn all of them into fragments of one.
struct Fragment {
  std::string_view text;
  bool begins = true;  // the first fragment of a token
  bool ends = true;    // the last one
};

// State of one step for one text.
class DecoderStep {
 public:
  using Sink = std::function<void(Fragment)>;
  virtual ~DecoderStep() = default;
  virtual void push(Fragment fragment, const Sink& next) = 0;
  virtual void finish(const Sink& next) = 0;  // there are no more tokens
};

// Makes the state of a step, at the start of a text.
using DecoderStepMaker = std::function<std::unique_ptr<DecoderStep>()>;

class DecoderChain {
 public:
  // From tokenizer.json; null joins tokens with spaces.
  static Result<DecoderChain> make(const nlohmann::json& description,
                                   const std::string& where);
  // Bytes in GPT-2's alphabet.
  static DecoderChain byte_level();
  // U+2581 is a space, <0xNN> a byte; a space that stands first is dropped if
  // the encoder put one there.
  static DecoderChain sentencepiece(bool strip_first_space);

 private:
  friend class DecoderRun;
  std::vector<DecoderStepMaker> steps_;
};

class DecoderRun {
 public:
  explicit DecoderRun(const DecoderChain& chain);

  // Appends to `out` what is certain by now.
  void push(std::string_view token, std::string& out);
  void finish(std::string& out);

 private:
  void pass(size_t step, Fragment fragment, std::string& out);

  std::vector<std::unique_ptr<DecoderStep>> steps_;
};

}  // namespace mlx_flash
