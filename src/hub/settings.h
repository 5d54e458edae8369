// SPDX-License-Identifier: MIT
#pragma once

// Where the hub is and where its cache lies, from the environment variables of
// Python's huggingface_hub (docs/HUB.md has the table).

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace mlx_flash::hub {

struct Settings {
  std::string endpoint;    // "https://huggingface.co", no slash at the end
  std::string cache;       // folder of "models--org--name"
  std::string token;       // empty: anonymous
  std::string token_from;  // "HF_TOKEN", a path: for messages
  std::string ca_file;     // certificates; empty: the system's
  bool offline = false;
  bool symlinks = true;         // false: files in place of links
  int64_t timeout_ms = 10'000;  // to connect, and without bytes
  int64_t backoff_ms = 1'000;   // before the first retry; doubles
  int connections = 8;
};

// What getenv returns for a name; nothing if unset.
using Environment = std::function<std::optional<std::string>(const char*)>;

// Reads the token file too. An unusable value counts as unset.
Settings settings_from(const Environment& environment);
Settings settings_from_environment();

}  // namespace mlx_flash::hub
