// SPDX-License-Identifier: MIT

// The files beside tokenizer.json. Read as streams: with thousands of added
// tokens tokenizer_config.json reaches a megabyte.

#include <fmt/format.h>
#include <sys/stat.h>

#include "base/read_file.h"
#include "text/json_reader.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

namespace mlx_flash {
namespace {

using Type = JsonReader::Type;

constexpr size_t kTemplateBytesMax = 4 << 20;

bool exists(const std::string& path) {
  struct stat s {};
  return ::stat(path.c_str(), &s) == 0;
}

// "<s>", or {"content": "<s>", ...}; null and anything else: no token.
bool read_token_text(JsonReader& in, std::string& text) {
  std::string_view value;
  text.clear();
  if (in.peek() == Type::kString) {
    if (in.read_string(value)) text = value;
    return !text.empty();
  }
  if (in.peek() != Type::kObject) {
    in.skip_value();
    return false;
  }
  in.begin_object();
  while (in.next_key(value)) {
    if (value == "content" && in.peek() == Type::kString) {
      if (in.read_string(value)) text = value;
    } else {
      in.skip_value();
    }
  }
  return in.ok() && !text.empty();
}

void read_flag(JsonReader& in, std::optional<bool>& flag) {
  bool value;
  if (in.peek() != Type::kBool) {
    in.skip_value();
  } else if (in.read_bool(value)) {
    flag = value;
  }
}

// A template, or [{"name": ..., "template": ...}, ...]: the default one.
void read_template(JsonReader& in, std::string& chat_template) {
  std::string_view text;
  if (in.peek() == Type::kString) {
    if (in.read_string(text)) chat_template = text;
    return;
  }
  if (in.peek() != Type::kArray) {
    in.skip_value();
    return;
  }
  in.begin_array();
  while (in.next_element()) {
    std::string name;
    std::string body;
    in.begin_object();
    while (in.next_key(text)) {
      std::string* to = text == "name"       ? &name
                        : text == "template" ? &body
                                             : nullptr;
      if (to == nullptr) {
        in.skip_value();
      } else if (in.read_string(text)) {
        *to = text;
      }
    }
    if (name == "default") chat_template = body;
  }
}

// {"5": {"content": "<s>", "special": true, ...}, ...}
void read_added_tokens_decoder(JsonReader& in,
                               std::vector<TokenizerConfig::Added>& list) {
  std::string_view key;
  in.begin_object();
  while (in.next_key(key)) {
    int64_t id = -1;
    if (!key.empty() && key.size() < 10) {
      id = 0;
      for (const char c : key) {
        if (c < '0' || c > '9') id = -1;
        if (id >= 0) id = id * 10 + (c - '0');
      }
    }
    if (id < 0 || id > kTokenIdMax) {
      in.fail("a key of added_tokens_decoder is not a token id");
      return;
    }
    TokenizerConfig::Added added;
    added.token.id = static_cast<int32_t>(id);
    in.begin_object();
    while (in.next_key(key)) {
      AddedToken& t = added.token;
      bool* flag = key == "special"       ? &t.special
                   : key == "normalized"  ? &t.normalized
                   : key == "lstrip"      ? &t.left_strip
                   : key == "rstrip"      ? &t.right_strip
                   : key == "single_word" ? &t.single_word
                                          : nullptr;
      if (flag != nullptr) {
        in.read_bool(*flag);
      } else if (key == "content") {
        if (in.read_string(key)) added.content = key;
      } else {
        in.skip_value();
      }
    }
    list.push_back(std::move(added));
  }
}

// Any key that ends in "_token" names a special token.
Status read_token_texts(const std::string& path,
                        bool want_added,
                        TokenizerConfig& config) {
  FLASH_ASSIGN_OR_RETURN(const auto reader, JsonReader::open(path));
  JsonReader& in = *reader;
  std::string_view key;
  std::string name;
  std::string text;
  in.begin_object();
  while (in.next_key(key)) {
    if (key == "chat_template") {
      read_template(in, config.chat_template);
    } else if (key == "add_bos_token") {
      read_flag(in, config.add_bos);
    } else if (key == "add_eos_token") {
      read_flag(in, config.add_eos);
    } else if (key == "legacy") {
      read_flag(in, config.legacy);
    } else if (key == "added_tokens_decoder" && want_added) {
      read_added_tokens_decoder(in, config.added);
    } else if (key.ends_with("_token")) {
      name = key;
      if (!read_token_text(in, text)) continue;
      bool known = false;  // the first file that has it counts
      for (const auto& [other, value] : config.special_tokens) {
        known = known || other == name;
      }
      if (!known) config.special_tokens.emplace_back(name, text);
    } else {
      in.skip_value();
    }
  }
  in.finish();
  return in.status();
}

// "eos_token_id": a number or a list of them.
Status read_eos_ids(const std::string& path, std::vector<int32_t>& ids) {
  FLASH_ASSIGN_OR_RETURN(const auto reader, JsonReader::open(path));
  JsonReader& in = *reader;
  std::string_view key;
  const auto read_one = [&] {
    int64_t id;
    if (in.peek() != Type::kNumber) {
      in.skip_value();
    } else if (in.read_integer(id) && id >= 0 && id <= kTokenIdMax) {
      ids.push_back(static_cast<int32_t>(id));
    }
  };
  in.begin_object();
  while (in.next_key(key)) {
    if (key != "eos_token_id") {
      in.skip_value();
      continue;
    }
    ids.clear();
    if (in.peek() == Type::kArray) {
      in.begin_array();
      while (in.next_element()) read_one();
    } else {
      read_one();
    }
  }
  // What is broken elsewhere in these files is for their owners to say.
  return Status();
}

}  // namespace

Result<TokenizerConfig> read_tokenizer_config(const std::string& dir,
                                              bool want_added) {
  TokenizerConfig config;
  for (const char* name :
       {"/tokenizer_config.json", "/special_tokens_map.json"}) {
    if (!exists(dir + name)) continue;
    FLASH_RETURN_IF_ERROR(read_token_texts(dir + name, want_added, config));
  }
  // As mlx-lm has it: generation_config.json, else config.json, else eos_token.
  for (const char* name : {"/generation_config.json", "/config.json"}) {
    if (!config.eos_ids.empty() || !exists(dir + name)) continue;
    FLASH_RETURN_IF_ERROR(read_eos_ids(dir + name, config.eos_ids));
  }
  const std::string jinja = dir + "/chat_template.jinja";
  if (exists(jinja)) {
    FLASH_ASSIGN_OR_RETURN(config.chat_template,
                           read_whole_file(jinja, kTemplateBytesMax));
    const size_t broken = find_invalid_utf8(config.chat_template);
    if (broken != std::string_view::npos) {
      return invalid_input(
          fmt::format("{}: byte {} is not valid UTF-8", jinja, broken));
    }
  }
  return config;
}

}  // namespace mlx_flash
