// SPDX-License-Identifier: MIT
#include "hub/settings.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>

#include "base/read_file.h"

namespace mlx_flash::hub {
namespace {

constexpr size_t kTokenBytesMax = 4096;

class Reader {
 public:
  explicit Reader(const Environment& environment) : environment_(environment) {}

  // Empty counts as unset.
  std::string text(const char* name) const {
    return environment_(name).value_or(std::string());
  }

  bool truth(const char* name) const {
    std::string value = text(name);
    std::transform(value.begin(), value.end(), value.begin(), [](char c) {
      return static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    });
    return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
  }

  int64_t number(const char* name, int64_t fallback, int64_t max) const {
    const std::string value = text(name);
    int64_t number = 0;
    const char* const end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, number);
    if (error != std::errc() || stop != end || number <= 0) return fallback;
    return std::min(number, max);
  }

  // "~/x" and "$HOME/x" as Python's expanduser and expandvars read them.
  std::string path(const char* name) const {
    std::string value = text(name);
    if (value == "~" || value.starts_with("~/")) {
      value.replace(0, 1, text("HOME"));
    }
    for (const std::string_view home : {"${HOME}", "$HOME"}) {
      const size_t at = value.find(home);
      if (at != value.npos) value.replace(at, home.size(), text("HOME"));
    }
    return value;
  }

 private:
  const Environment& environment_;
};

std::string home_folder(const Reader& reader) {
  if (auto home = reader.path("HF_HOME"); !home.empty()) return home;
  if (auto cache = reader.path("XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/huggingface";
  }
  return reader.text("HOME") + "/.cache/huggingface";
}

// Without blanks and line ends around it; empty if it could not be a header.
std::string clean_token(std::string text) {
  const auto blank = [](char c) {
    return std::isspace(static_cast<unsigned char>(c)) != 0;
  };
  text.erase(std::find_if_not(text.rbegin(), text.rend(), blank).base(),
             text.end());
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), blank));
  const bool sound = std::all_of(
      text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
  return sound && text.size() <= kTokenBytesMax ? text : std::string();
}

void find_token(const Reader& reader,
                const std::string& home,
                Settings& settings) {
  if (reader.truth("HF_HUB_DISABLE_IMPLICIT_TOKEN")) return;
  for (const char* name : {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}) {
    settings.token = clean_token(reader.text(name));
    settings.token_from = name;
    if (!settings.token.empty()) return;
  }
  std::string path = reader.path("HF_TOKEN_PATH");
  if (path.empty()) path = home + "/token";
  const auto text = read_whole_file(path, kTokenBytesMax);
  if (text.ok()) settings.token = clean_token(*text);
  settings.token_from = settings.token.empty() ? "" : path;
}

}  // namespace

Settings settings_from(const Environment& environment) {
  const Reader reader(environment);
  Settings settings;
  settings.endpoint = reader.text("HF_ENDPOINT");
  if (settings.endpoint.empty()) settings.endpoint = "https://huggingface.co";
  while (settings.endpoint.ends_with('/')) settings.endpoint.pop_back();
  const std::string home = home_folder(reader);
  settings.cache = reader.path("HF_HUB_CACHE");
  if (settings.cache.empty()) {
    settings.cache = reader.path("HUGGINGFACE_HUB_CACHE");
  }
  if (settings.cache.empty()) settings.cache = home + "/hub";
  find_token(reader, home, settings);
  for (const char* name :
       {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"}) {
    if (settings.ca_file.empty()) settings.ca_file = reader.path(name);
  }
  settings.offline = reader.truth("HF_HUB_OFFLINE") ||
                     (reader.text("HF_HUB_OFFLINE").empty() &&
                      reader.truth("TRANSFORMERS_OFFLINE"));
  settings.symlinks = !reader.truth("HF_HUB_DISABLE_SYMLINKS");
  settings.timeout_ms =
      1000 * reader.number("HF_HUB_DOWNLOAD_TIMEOUT", 10, 86'400);
  settings.backoff_ms =
      reader.number("MLX_FLASH_HUB_BACKOFF_MS", settings.backoff_ms, 600'000);
  settings.connections = static_cast<int>(
      reader.number("MLX_FLASH_HUB_CONNECTIONS", settings.connections, 64));
  return settings;
}

Settings settings_from_environment() {
  return settings_from([](const char* name) -> std::optional<std::string> {
    const char* const value = std::getenv(name);
    if (value == nullptr) return std::nullopt;
    return value;
  });
}

}  // namespace mlx_flash::hub
