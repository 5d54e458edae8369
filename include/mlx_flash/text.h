// SPDX-License-Identifier: MIT
#pragma once

// A model's text side alone: tokenizer and chat template, without weights.
//
// Immutable after open; safe to use from any thread.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mlx_flash/status.h"

namespace mlx_flash {

class Tokenizer;  // internal

struct ChatOptions {
  bool add_generation_prompt = true;
  std::string tools_json;  // a JSON array, or empty
  // Variables for the template: name and JSON value ("false", "\"text\"").
  std::vector<std::pair<std::string, std::string>> variables;
  std::optional<std::string> now;  // ISO local time for strftime_now
};

class Text {
 public:
  // `model`: a folder with tokenizer files, or a .gguf file.
  static Result<std::unique_ptr<Text>> open(const std::string& model);
  // A model that has no tokenizer we can read: ids work, every use of text
  // fails with `why`.
  static std::unique_ptr<Text> without_tokenizer(Status why);
  ~Text();

  // Text to ids; `add_special` adds what the tokenizer adds by itself (bos).
  Result<std::vector<int32_t>> encode(std::string_view text,
                                      bool add_special) const;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  bool has_chat_template() const;
  // Messages (a JSON array of {role, content, ...}) to the prompt text, by the
  // model's own chat template.
  Result<std::string> render_chat(std::string_view messages_json,
                                  const ChatOptions& options) const;
  // The ids of a chat prompt. The template writes its own special tokens, so
  // none are added.
  Result<std::vector<int32_t>> encode_chat(std::string_view messages_json,
                                           const ChatOptions& options) const;

  // Ids that end an answer (from generation_config.json, config.json,
  // tokenizer or GGUF metadata).
  const std::vector<int32_t>& eos_ids() const;
  size_t vocab_size() const;
  // For code inside this project; null without a tokenizer.
  const Tokenizer* tokenizer() const;

 private:
  Text();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mlx_flash
