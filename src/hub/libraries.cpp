// SPDX-License-Identifier: MIT
#include "hub/libraries.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <string>

#if defined(__APPLE__)
#include <CommonCrypto/CommonDigest.h>
#endif

namespace mlx_flash::hub {
namespace {

#if defined(__APPLE__)
constexpr const char* kCurlNames[] = {"libcurl.4.dylib", "libcurl.dylib"};
#else
constexpr const char* kCurlNames[] = {
    "libcurl.so.4", "libcurl-gnutls.so.4", "libcurl.so"};
#endif

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  // dlsym's void* is a function pointer on every POSIX system.
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

std::string hex_of(const unsigned char* bytes, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) out += fmt::format("{:02x}", bytes[i]);
  return out;
}

#if defined(__APPLE__)

class CommonCryptoHasher : public Hasher {
 public:
  explicit CommonCryptoHasher(HashKind kind) : kind_(kind) {
    if (kind == HashKind::kSha1) {
      CC_SHA1_Init(&sha1_);
    } else {
      CC_SHA256_Init(&sha256_);
    }
  }
  void add(const void* data, size_t bytes) override {
    if (kind_ == HashKind::kSha1) {
      CC_SHA1_Update(&sha1_, data, static_cast<CC_LONG>(bytes));
    } else {
      CC_SHA256_Update(&sha256_, data, static_cast<CC_LONG>(bytes));
    }
  }
  std::string hex() override {
    std::array<unsigned char, CC_SHA256_DIGEST_LENGTH> digest{};
    if (kind_ == HashKind::kSha1) {
      CC_SHA1_Final(digest.data(), &sha1_);
      return hex_of(digest.data(), CC_SHA1_DIGEST_LENGTH);
    }
    CC_SHA256_Final(digest.data(), &sha256_);
    return hex_of(digest.data(), digest.size());
  }

 private:
  HashKind kind_;
  CC_SHA1_CTX sha1_;
  CC_SHA256_CTX sha256_;
};

#else

constexpr const char* kCryptoNames[] = {
    "libcrypto.so.3", "libcrypto.so.4", "libcrypto.so.1.1", "libcrypto.so"};
constexpr size_t kDigestMax = 64;  // EVP_MAX_MD_SIZE

// Functions of OpenSSL's manual (EVP_DigestInit), the same since 1.1.0; so that
// its headers are not needed. A context, a method and an engine are opaque.
struct CryptoApi {
  void* (*context_new)() = nullptr;
  void (*context_free)(void* context) = nullptr;
  int (*init)(void* context, const void* method, void* engine) = nullptr;
  int (*update)(void* context, const void* data, size_t bytes) = nullptr;
  int (*final)(void* context, unsigned char* out, unsigned* bytes) = nullptr;
  const void* (*sha1)() = nullptr;
  const void* (*sha256)() = nullptr;
};

Result<CryptoApi> load_crypto() {
  void* library = nullptr;
  for (const char* name : kCryptoNames) {
    library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  CryptoApi api;
  if (library == nullptr || !find(library, "EVP_MD_CTX_new", api.context_new) ||
      !find(library, "EVP_MD_CTX_free", api.context_free) ||
      !find(library, "EVP_DigestInit_ex", api.init) ||
      !find(library, "EVP_DigestUpdate", api.update) ||
      !find(library, "EVP_DigestFinal_ex", api.final) ||
      !find(library, "EVP_sha1", api.sha1) ||
      !find(library, "EVP_sha256", api.sha256)) {
    return unsupported(
        "libcrypto cannot be loaded, which checks downloads: install OpenSSL "
        "(Debian: apt-get install libssl3)");
  }
  return api;
}

class OpenSslHasher : public Hasher {
 public:
  OpenSslHasher(const CryptoApi& api, void* context)
      : api_(api), context_(context) {}
  ~OpenSslHasher() override { api_.context_free(context_); }
  OpenSslHasher(const OpenSslHasher&) = delete;
  OpenSslHasher& operator=(const OpenSslHasher&) = delete;

  void add(const void* data, size_t bytes) override {
    api_.update(context_, data, bytes);
  }
  std::string hex() override {
    std::array<unsigned char, kDigestMax> digest{};
    unsigned int size = 0;
    api_.final(context_, digest.data(), &size);
    return hex_of(digest.data(), size);
  }

 private:
  CryptoApi api_;
  void* context_;
};

#endif

}  // namespace

Result<std::shared_ptr<const CurlApi>> load_curl() {
  void* library = nullptr;
  for (const char* name : kCurlNames) {
    library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
  }
  auto api = std::make_shared<CurlApi>();
  if (library == nullptr ||
      !find(library, "curl_global_init", api->global_init) ||
      !find(library, "curl_easy_init", api->easy_init) ||
      !find(library, "curl_easy_reset", api->easy_reset) ||
      !find(library, "curl_easy_cleanup", api->easy_cleanup) ||
      !find(library, "curl_easy_setopt", api->easy_setopt) ||
      !find(library, "curl_easy_getinfo", api->easy_getinfo) ||
      !find(library, "curl_multi_init", api->multi_init) ||
      !find(library, "curl_multi_cleanup", api->multi_cleanup) ||
      !find(library, "curl_multi_add_handle", api->multi_add_handle) ||
      !find(library, "curl_multi_remove_handle", api->multi_remove_handle) ||
      !find(library, "curl_multi_perform", api->multi_perform) ||
      !find(library, "curl_multi_poll", api->multi_poll) ||
      !find(library, "curl_multi_info_read", api->multi_info_read) ||
      !find(library, "curl_easy_strerror", api->easy_strerror) ||
      !find(library, "curl_slist_append", api->slist_append) ||
      !find(library, "curl_slist_free_all", api->slist_free_all) ||
      !find(library, "curl_url", api->url) ||
      !find(library, "curl_url_cleanup", api->url_cleanup) ||
      !find(library, "curl_url_set", api->url_set) ||
      !find(library, "curl_url_get", api->url_get) ||
      !find(library, "curl_free", api->free)) {
    return unsupported(
        "libcurl (7.66 or later) cannot be loaded, which downloads need: "
        "install it (Debian: apt-get install libcurl4)");
  }
  if (api->global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
    return internal_error("libcurl does not start");
  }
  return std::shared_ptr<const CurlApi>(std::move(api));
}

Result<std::unique_ptr<Hasher>> make_hasher(HashKind kind) {
#if defined(__APPLE__)
  return std::unique_ptr<Hasher>(std::make_unique<CommonCryptoHasher>(kind));
#else
  FLASH_ASSIGN_OR_RETURN(const CryptoApi api, load_crypto());
  void* const context = api.context_new();
  if (context == nullptr ||
      api.init(context,
               kind == HashKind::kSha1 ? api.sha1() : api.sha256(),
               nullptr) != 1) {
    api.context_free(context);
    return internal_error("OpenSSL refuses to hash");
  }
  return std::unique_ptr<Hasher>(std::make_unique<OpenSslHasher>(api, context));
#endif
}

}  // namespace mlx_flash::hub
