// SPDX-License-Identifier: MIT
#pragma once

// libcurl and a hash, loaded when a download begins and not before: linked in,
// libcurl and the thirty libraries behind it would cost every run of a model
// 8 MB of its budget.

#include <curl/curl.h>

#include <cstddef>
#include <memory>
#include <string>

#include "base/status.h"

namespace mlx_flash::hub {

// The part of libcurl that http.cpp calls, by libcurl's names.
struct CurlApi {
  decltype(&::curl_global_init) global_init = nullptr;
  decltype(&::curl_easy_init) easy_init = nullptr;
  decltype(&::curl_easy_reset) easy_reset = nullptr;
  decltype(&::curl_easy_cleanup) easy_cleanup = nullptr;
  decltype(&::curl_easy_setopt) easy_setopt = nullptr;
  decltype(&::curl_easy_getinfo) easy_getinfo = nullptr;
  decltype(&::curl_multi_init) multi_init = nullptr;
  decltype(&::curl_multi_cleanup) multi_cleanup = nullptr;
  decltype(&::curl_multi_add_handle) multi_add_handle = nullptr;
  decltype(&::curl_multi_remove_handle) multi_remove_handle = nullptr;
  decltype(&::curl_multi_perform) multi_perform = nullptr;
  decltype(&::curl_multi_poll) multi_poll = nullptr;
  decltype(&::curl_multi_info_read) multi_info_read = nullptr;
  decltype(&::curl_easy_strerror) easy_strerror = nullptr;
  decltype(&::curl_slist_append) slist_append = nullptr;
  decltype(&::curl_slist_free_all) slist_free_all = nullptr;
  decltype(&::curl_url) url = nullptr;
  decltype(&::curl_url_cleanup) url_cleanup = nullptr;
  decltype(&::curl_url_set) url_set = nullptr;
  decltype(&::curl_url_get) url_get = nullptr;
  decltype(&::curl_free) free = nullptr;
};

// Loads libcurl and initialises it. Call it once, before threads start; the
// library stays loaded. Fails with what to install.
Result<std::shared_ptr<const CurlApi>> load_curl();

// A hash that bytes are fed to. Not thread-safe.
class Hasher {
 public:
  virtual ~Hasher() = default;
  virtual void add(const void* data, size_t bytes) = 0;
  virtual std::string hex() = 0;  // lower case; once, at the end
};

enum class HashKind { kSha1, kSha256 };

// OpenSSL's (CommonCrypto's on a Mac). Fails with what to install.
Result<std::unique_ptr<Hasher>> make_hasher(HashKind kind);

}  // namespace mlx_flash::hub
