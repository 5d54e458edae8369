// SPDX-License-Identifier: MIT
#include "mlx_flash/text.h"

#include <filesystem>

#include "base/json.h"
#include "checkpoint/gguf.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace mlx_flash {

struct Text::Impl {
  std::unique_ptr<Tokenizer> tokenizer;  // null: see `why`
  Status why;
};

Text::Text() : impl_(std::make_unique<Impl>()) {}
Text::~Text() = default;

Result<std::unique_ptr<Text>> Text::open(const std::string& model) {
  std::unique_ptr<Text> text(new Text());
  std::error_code error;
  if (std::filesystem::is_directory(model, error)) {
    FLASH_ASSIGN_OR_RETURN(text->impl_->tokenizer,
                           Tokenizer::from_folder(model));
    return text;
  }
  if (!std::filesystem::exists(model, error)) {
    return invalid_input(model + ": no such file or folder");
  }
  Result<GgufVocab> vocab = read_gguf_vocab(model);
  if (!vocab.ok()) return vocab.status();
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::from_gguf(*vocab);
  if (!tokenizer.ok()) return tokenizer.status().at(model);
  text->impl_->tokenizer = std::move(tokenizer).value();
  return text;
}

std::unique_ptr<Text> Text::without_tokenizer(Status why) {
  std::unique_ptr<Text> text(new Text());
  text->impl_->why = std::move(why);
  return text;
}

Result<std::vector<int32_t>> Text::encode(std::string_view text,
                                          bool add_special) const {
  if (!impl_->tokenizer) return impl_->why;
  return impl_->tokenizer->encode(text, add_special);
}

std::string Text::decode(std::span<const int32_t> ids,
                         bool skip_special) const {
  if (!impl_->tokenizer) return "";
  return impl_->tokenizer->decode(ids, skip_special);
}

bool Text::has_chat_template() const {
  return impl_->tokenizer && !impl_->tokenizer->chat_template().empty();
}

Result<std::string> Text::render_chat(std::string_view messages_json,
                                      const ChatOptions& options) const {
  if (!impl_->tokenizer) return impl_->why;
  if (!has_chat_template()) {
    return invalid_input(
        "the model has no chat template; give the prompt as plain text "
        "(--raw)");
  }
  FLASH_ASSIGN_OR_RETURN(const Json messages, parse_json(messages_json));
  ChatTemplate::Options render;
  render.add_generation_prompt = options.add_generation_prompt;
  render.now = options.now;
  if (!options.tools_json.empty()) {
    FLASH_ASSIGN_OR_RETURN(render.tools, parse_json(options.tools_json));
  }
  render.variables = Json::object();
  for (const auto& [name, value] : impl_->tokenizer->special_tokens()) {
    render.variables[name] = value;
  }
  for (const auto& [name, value] : options.variables) {
    Result<Json> parsed = parse_json(value);
    if (!parsed.ok()) return parsed.status().at(name);
    render.variables[name] = std::move(parsed).value();
  }
  FLASH_ASSIGN_OR_RETURN(
      const ChatTemplate chat,
      ChatTemplate::compile(impl_->tokenizer->chat_template()));
  return chat.render(messages, render);
}

Result<std::vector<int32_t>> Text::encode_chat(
    std::string_view messages_json, const ChatOptions& options) const {
  FLASH_ASSIGN_OR_RETURN(const std::string prompt,
                         render_chat(messages_json, options));
  return encode(prompt, false);
}

const std::vector<int32_t>& Text::eos_ids() const {
  static const std::vector<int32_t> kNone;
  return impl_->tokenizer ? impl_->tokenizer->eos_ids() : kNone;
}

size_t Text::vocab_size() const {
  return impl_->tokenizer ? impl_->tokenizer->vocab_size() : 0;
}

const Tokenizer* Text::tokenizer() const {
  return impl_->tokenizer.get();
}

}  // namespace mlx_flash
