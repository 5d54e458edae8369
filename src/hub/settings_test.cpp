// SPDX-License-Identifier: MIT
#include "hub/settings.h"

#include <gtest/gtest.h>

#include <map>

namespace mlx_flash::hub {
namespace {

Settings from(std::map<std::string, std::string> values) {
  return settings_from([&](const char* name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return std::nullopt;
    return found->second;
  });
}

TEST(Settings, DefaultsAreHuggingfaceHubs) {
  const Settings settings = from({{"HOME", "/h"}});
  EXPECT_EQ(settings.endpoint, "https://huggingface.co");
  EXPECT_EQ(settings.cache, "/h/.cache/huggingface/hub");
  EXPECT_EQ(settings.token, "");
  EXPECT_FALSE(settings.offline);
}

TEST(Settings, TheNearerVariableWins) {
  EXPECT_EQ(from({{"HOME", "/h"}, {"XDG_CACHE_HOME", "/x"}}).cache,
            "/x/huggingface/hub");
  EXPECT_EQ(from({{"XDG_CACHE_HOME", "/x"}, {"HF_HOME", "/f"}}).cache,
            "/f/hub");
  EXPECT_EQ(from({{"HF_HOME", "/f"}, {"HF_HUB_CACHE", "/c"}}).cache, "/c");
  EXPECT_EQ(from({{"HF_HOME", "/f"}, {"HF_HUB_CACHE", ""}}).cache, "/f/hub");
  EXPECT_EQ(from({{"HOME", "/h"}, {"HF_HOME", "~/f"}}).cache, "/h/f/hub");
  EXPECT_EQ(from({{"HOME", "/h"}, {"HF_HUB_CACHE", "$HOME/c"}}).cache, "/h/c");
}

TEST(Settings, EndpointWithoutSlash) {
  EXPECT_EQ(from({{"HF_ENDPOINT", "http://x:1//"}}).endpoint, "http://x:1");
}

TEST(Settings, TokensThatAreNoHeaderAreNone) {
  EXPECT_EQ(from({{"HF_TOKEN", " abc\n"}}).token, "abc");
  EXPECT_EQ(from({{"HF_TOKEN", "a\nb"}}).token, "");
  EXPECT_EQ(from({{"HF_TOKEN", "a b"}}).token, "");
  EXPECT_EQ(
      from({{"HF_TOKEN", "a"}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"}}).token,
      "");
}

TEST(Settings, TruthAsPythonReadsIt) {
  for (const char* yes : {"1", "ON", "yes", "True"}) {
    EXPECT_TRUE(from({{"HF_HUB_OFFLINE", yes}}).offline) << yes;
  }
  for (const char* no : {"", "0", "off", "no", "2"}) {
    EXPECT_FALSE(from({{"HF_HUB_OFFLINE", no}}).offline) << no;
  }
}

TEST(Settings, NumbersThatAreNoneCountAsUnset) {
  EXPECT_EQ(from({{"HF_HUB_DOWNLOAD_TIMEOUT", "3"}}).timeout_ms, 3000);
  for (const char* text : {"", "x", "-1", "0", "3x", "99999999999999999999"}) {
    EXPECT_EQ(from({{"HF_HUB_DOWNLOAD_TIMEOUT", text}}).timeout_ms, 10'000);
  }
  EXPECT_EQ(from({{"MLX_FLASH_HUB_CONNECTIONS", "1000"}}).connections, 64);
}

}  // namespace
}  // namespace mlx_flash::hub
