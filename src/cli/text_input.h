// SPDX-License-Identifier: MIT
#pragma once

// Text and prompts from arguments, files and stdin: read within limits, checked
// before a model is opened.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "cli/options.h"
#include "mlx_flash/engine.h"
#include "mlx_flash/status.h"
#include "mlx_flash/text.h"

namespace mlx_flash {

// The bytes of a file, exactly; "-" is stdin.
Result<std::string> read_text(const std::string& path);

// Fails with the offset of the first byte that is not UTF-8; `what` names the
// text in the message.
Status check_utf8(std::string_view text, const std::string& what);

// Fails on an id outside the model's vocabulary, on no ids at all, and on more
// than the context holds.
Status check_prompt_ids(const Engine& engine, std::span<const int32_t> ids);

// The text of --text, --text-file or stdin, exactly, checked to be UTF-8.
Result<std::string> read_plain_text(const TextOptions& options);

// A prompt that was read and checked; not tokenised yet.
struct Prompt {
  std::string text;
  std::vector<int32_t> ids;  // instead of text
  bool from_ids = false;
};

// From exactly one of --prompt, --prompt-file, --prompt-ids, or stdin when none
// is given and it is not a terminal. Fails on an empty prompt. One newline that
// ends stdin is dropped unless --raw is given; files are taken exactly.
Result<Prompt> read_prompt(const PromptOptions& options);

// The ids to feed: through the chat template where the model has one and --raw
// is not given. Fails where the options ask for a template that is not there.
Result<std::vector<int32_t>> encode_prompt(const Text& text,
                                           const Prompt& prompt,
                                           const PromptOptions& options);

// {"role": role, "content": content}
Json chat_message(const char* role, std::string_view content);

}  // namespace mlx_flash
