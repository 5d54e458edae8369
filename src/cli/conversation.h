// SPDX-License-Identifier: MIT
#pragma once

// The parts of a chat that need no model: the messages so far, and lines typed
// into one message. Thread-compatible.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/status.h"

namespace mlx_flash {

// Messages in the form chat templates take.
class Conversation {
 public:
  // Empty: no system message.
  void set_system(std::string text) { system_ = std::move(text); }
  const std::string& system() const { return system_; }

  void add(const char* role, std::string_view content);
  void drop_last();                         // REQUIRES: !empty()
  void clear() { turns_ = Json::array(); }  // keeps the system message
  bool empty() const { return turns_.empty(); }
  size_t size() const { return turns_.size(); }

  // [{"role": ..., "content": ...}, ...], the system message first.
  std::string json() const;

  // All of it, for restore(), which takes the place of what there is; refused,
  // and nothing changed, for anything else.
  std::string saved() const;
  Status restore(const std::string& saved);

 private:
  std::string system_;
  Json turns_ = Json::array();
};

// How many ids at the start are the same.
size_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b);

// One message out of typed lines: a line that ends with a backslash goes on;
// a line that is """ (or starts with it) opens a block that """ closes.
class MessageInput {
 public:
  // Takes a line without its newline. True if the message is complete.
  bool add_line(std::string_view line);

  // A message was begun and is not complete.
  bool open() const { return open_; }

  // The message; starts anew.
  std::string take();

 private:
  std::string text_;
  bool open_ = false;
  bool block_ = false;
};

}  // namespace mlx_flash
