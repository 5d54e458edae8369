// SPDX-License-Identifier: MIT
#pragma once

// Chat templates: messages to the exact prompt that Hugging Face transformers'
// apply_chat_template would make.
//
// A template is Jinja2 source from an untrusted file. It can neither crash nor
// stall its caller: it ends within about a second and 64 MB, or with an error
// that names line and column.

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace mlx_flash {

namespace jinja {
struct Template;
}

// Thread-safe: rendering changes nothing. Cheap to copy.
class ChatTemplate {
 public:
  struct Options {
    bool add_generation_prompt = true;
    Json tools;      // array of JSON schemas, or null
    Json documents;  // array of {title, text}, or null
    // More variables by name: bos_token, eos_token, enable_thinking, ... They
    // never replace messages, tools, documents and add_generation_prompt.
    Json variables = Json::object();
    // Local time for strftime_now as YYYY-MM-DDTHH:MM:SS; default: the clock.
    std::optional<std::string> now;
    // As transformers >= 5.23: a message's reasoning_content, thinking or
    // reasoning is also given under the first two names.
    bool alias_reasoning = false;
  };

  // Fails on source that Jinja2 would not compile, with line and column.
  static Result<ChatTemplate> compile(std::string_view source);

  // `messages` is an array of objects; their values reach the template as they
  // are. Fails with the message of raise_exception, with what Jinja2 would
  // raise, or when the template passes a limit.
  Result<std::string> render(const Json& messages,
                             const Options& options) const;

 private:
  explicit ChatTemplate(std::shared_ptr<const jinja::Template> code)
      : code_(std::move(code)) {}

  std::shared_ptr<const jinja::Template> code_;
};

}  // namespace mlx_flash
