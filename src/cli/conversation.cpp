// SPDX-License-Identifier: MIT
#include "cli/conversation.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "cli/text_input.h"

namespace mlx_flash {
namespace {

constexpr std::string_view kQuotes = "\"\"\"";

// An answer that was cut may end inside a character.
std::string text_of(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

void Conversation::add(const char* role, std::string_view content) {
  turns_.push_back(chat_message(role, content));
}

void Conversation::drop_last() {
  FLASH_CHECK(!turns_.empty());
  turns_.erase(turns_.size() - 1);
}

std::string Conversation::json() const {
  Json messages = Json::array();
  if (!system_.empty()) messages.push_back(chat_message("system", system_));
  for (const Json& turn : turns_) messages.push_back(turn);
  return text_of(messages);
}

std::string Conversation::saved() const {
  return text_of(Json{{"system", system_}, {"messages", turns_}});
}

Status Conversation::restore(const std::string& saved) {
  FLASH_ASSIGN_OR_RETURN(const Json all, parse_json(saved));
  const auto is_text = [](const Json& object, const char* key) {
    return object.is_object() && object.contains(key) &&
           object[key].is_string();
  };
  if (!is_text(all, "system") || !all.contains("messages") ||
      !all["messages"].is_array()) {
    return invalid_input("the session holds no conversation");
  }
  Json turns = Json::array();
  for (const Json& turn : all["messages"]) {
    if (!is_text(turn, "role") || !is_text(turn, "content")) {
      return invalid_input("the session's conversation has a bad message");
    }
    turns.push_back(chat_message(turn["role"].get<std::string>().c_str(),
                                 turn["content"].get<std::string>()));
  }
  system_ = all["system"].get<std::string>();
  turns_ = std::move(turns);
  return Status();
}

size_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t n = std::min(a.size(), b.size());
  size_t same = 0;
  while (same < n && a[same] == b[same]) ++same;
  return same;
}

bool MessageInput::add_line(std::string_view line) {
  if (block_) {
    if (line.ends_with(kQuotes)) {
      line.remove_suffix(kQuotes.size());
      text_ += line;
      // The newline before the closing quotes is not part of the text.
      if (line.empty() && text_.ends_with('\n')) text_.pop_back();
      open_ = block_ = false;
      return true;
    }
    text_ += line;
    text_ += '\n';
    return false;
  }
  if (!open_ && line.starts_with(kQuotes)) {
    line.remove_prefix(kQuotes.size());
    if (line.ends_with(kQuotes)) {
      line.remove_suffix(kQuotes.size());
      text_ = line;
      return true;
    }
    if (!line.empty()) {
      text_ += line;
      text_ += '\n';
    }
    open_ = block_ = true;
    return false;
  }
  if (line.ends_with('\\')) {
    line.remove_suffix(1);
    text_ += line;
    text_ += '\n';
    open_ = true;
    return false;
  }
  text_ += line;
  open_ = false;
  return true;
}

std::string MessageInput::take() {
  open_ = block_ = false;
  return std::exchange(text_, {});
}

}  // namespace mlx_flash
