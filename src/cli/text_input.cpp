// SPDX-License-Identifier: MIT
#include "cli/text_input.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "cli/console.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

constexpr size_t kTextBytesMax = size_t{64} << 20;
constexpr size_t kReadBytes = size_t{64} << 10;

Result<std::string> read_descriptor(int fd, const std::string& name) {
  std::string text;
  for (;;) {
    const size_t before = text.size();
    if (before > kTextBytesMax) {
      return invalid_input(
          fmt::format("{}: longer than {}, the most that is "
                      "taken",
                      name,
                      format_bytes(kTextBytesMax)));
    }
    text.resize(before + kReadBytes);
    const ssize_t n = ::read(fd, text.data() + before, kReadBytes);
    if (n < 0 && errno != EINTR) {
      return invalid_input(
          fmt::format("{}: cannot read: {}", name, std::strerror(errno)));
    }
    text.resize(before + static_cast<size_t>(n < 0 ? 0 : n));
    if (n == 0) return text;
  }
}

}  // namespace

Result<std::string> read_text(const std::string& path) {
  if (path == "-") return read_descriptor(STDIN_FILENO, "stdin");
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return invalid_input(
        fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  }
  auto text = read_descriptor(fd, path);
  ::close(fd);
  return text;
}

Status check_utf8(std::string_view text, const std::string& what) {
  size_t offset = 0;
  while (offset < text.size()) {
    utf8proc_int32_t point = 0;
    const utf8proc_ssize_t n = utf8proc_iterate(
        reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + offset,
        static_cast<utf8proc_ssize_t>(text.size() - offset),
        &point);
    if (n <= 0) {
      return invalid_input(
          fmt::format("{}: byte 0x{:02x} at offset {} is not UTF-8: convert "
                      "the text to UTF-8",
                      what,
                      static_cast<unsigned char>(text[offset]),
                      offset));
    }
    offset += static_cast<size_t>(n);
  }
  return {};
}

Status check_prompt_ids(const Engine& engine, std::span<const int32_t> ids) {
  if (ids.empty()) {
    return invalid_input("the text gives no tokens: there is nothing to feed");
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || static_cast<size_t>(ids[i]) >= engine.vocab_size()) {
      return invalid_input(
          fmt::format("id {} (item {}) is outside the vocabulary of {} tokens",
                      ids[i],
                      i + 1,
                      engine.vocab_size()));
    }
  }
  if (ids.size() > engine.plan().context) {
    return invalid_input(
        fmt::format("the prompt has {} tokens, the context holds {}: shorten "
                    "it, or raise --ctx or --ram",
                    ids.size(),
                    engine.plan().context));
  }
  return {};
}

Result<std::string> read_plain_text(const TextOptions& options) {
  if (options.text.has_value() && options.file.has_value()) {
    return invalid_input("more than one text: give one of --text, --text-file");
  }
  std::string text;
  std::string what = "--text";
  if (options.text.has_value() && *options.text != "-") {
    text = *options.text;
  } else {
    const std::string path = options.file.value_or("-");
    what = path == "-" ? "stdin" : path;
    if (!options.text && !options.file && stdin_is_terminal()) {
      return invalid_input(
          "no text: give --text TEXT, --text-file F, or text on stdin");
    }
    FLASH_ASSIGN_OR_RETURN(text, read_text(path));
  }
  FLASH_RETURN_IF_ERROR(check_utf8(text, what));
  return text;
}

Result<Prompt> read_prompt(const PromptOptions& options) {
  const auto& typed = options.text ? options.text : options.positional;
  const int given =
      int{options.text.has_value()} + int{options.positional.has_value()} +
      int{options.file.has_value()} + int{options.ids.has_value()};
  if (given > 1) {
    return invalid_input(
        "more than one prompt: give one of --prompt, --prompt-file, "
        "--prompt-ids");
  }
  constexpr const char* kNoPrompt =
      "give one with --prompt TEXT, --prompt-file F, --prompt-ids 1,2,3 or on "
      "stdin";
  Prompt prompt;
  if (options.ids.has_value()) {
    auto ids = parse_ids(*options.ids);
    if (!ids.ok()) return ids.status().at("--prompt-ids");
    if (ids->empty()) {
      return invalid_input("--prompt-ids: the list is empty");
    }
    prompt.ids = std::move(ids).value();
    prompt.from_ids = true;
    return prompt;
  }
  std::string what = "--prompt";
  if (typed.has_value() && *typed != "-") {
    prompt.text = *typed;
  } else if (options.file.has_value() && *options.file != "-") {
    what = *options.file;
    FLASH_ASSIGN_OR_RETURN(prompt.text, read_text(*options.file));
  } else {
    what = "stdin";
    if (given == 0 && stdin_is_terminal()) {
      return invalid_input(fmt::format("no prompt: {}", kNoPrompt));
    }
    FLASH_ASSIGN_OR_RETURN(prompt.text, read_text("-"));
    if (!options.raw && prompt.text.ends_with('\n')) prompt.text.pop_back();
  }
  if (prompt.text.empty()) {
    return invalid_input(
        fmt::format("{}: the prompt is empty: {}", what, kNoPrompt));
  }
  FLASH_RETURN_IF_ERROR(check_utf8(prompt.text, what));
  if (options.system.has_value()) {
    FLASH_RETURN_IF_ERROR(check_utf8(*options.system, "--system"));
  }
  return prompt;
}

Result<std::vector<int32_t>> encode_prompt(const Text& text,
                                           const Prompt& prompt,
                                           const PromptOptions& options) {
  const bool chat =
      !options.raw && !prompt.from_ids && text.has_chat_template();
  if (options.system.has_value() && !chat) {
    return invalid_input(
        options.raw || prompt.from_ids
            ? "--system: needs the chat template, which --raw and --prompt-ids "
              "leave out"
            : "--system: the model has no chat template that could take it");
  }
  if (prompt.from_ids) return prompt.ids;
  if (!chat) return text.encode(prompt.text, true);
  Json messages = Json::array();
  if (options.system.has_value()) {
    messages.push_back(chat_message("system", *options.system));
  }
  messages.push_back(chat_message("user", prompt.text));
  return text.encode_chat(messages.dump(), ChatOptions{});
}

Json chat_message(const char* role, std::string_view content) {
  return Json{{"role", role}, {"content", std::string(content)}};
}

}  // namespace mlx_flash
