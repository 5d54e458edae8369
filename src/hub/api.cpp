// SPDX-License-Identifier: MIT
#include "hub/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/json.h"
#include "base/quote.h"

namespace mlx_flash::hub {
namespace {

constexpr uint64_t kListingBytesMax = uint64_t{16} << 20;
constexpr size_t kFilesMax = 50'000;
constexpr uint64_t kSizeMax = uint64_t{1} << 50;
constexpr int64_t kTotalOverIdle = 12;  // of a listing: time-outs it may take

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>()
                                                     : std::string();
}

Result<RemoteFile> parse_file(const Json& entry) {
  if (!entry.is_object()) return invalid_input("an entry is not an object");
  RemoteFile file;
  file.name = text_of(entry, "rfilename");
  FLASH_RETURN_IF_ERROR(check_file_name(file.name));
  const auto size = entry.find("size");
  if (size != entry.end() && size->is_number()) {
    if (!size->is_number_unsigned() || size->get<uint64_t>() > kSizeMax) {
      return invalid_input(
          fmt::format("{} has a size that cannot be", quote(file.name)));
    }
    file.size = size->get<uint64_t>();
    file.sized = true;
  }
  const auto lfs = entry.find("lfs");
  if (lfs != entry.end() && lfs->is_object()) {
    file.lfs = true;
    file.etag = text_of(*lfs, "sha256");
    if (file.etag.empty()) file.etag = text_of(*lfs, "oid");
    if (!file.etag.empty() && !is_sha256(file.etag)) {
      return invalid_input(
          fmt::format("{} has a sha256 that is none", quote(file.name)));
    }
  } else {
    const std::string oid = text_of(entry, "blobId");
    if (is_git_oid(oid)) file.etag = oid;
  }
  return file;
}

Result<RepoInfo> parse_info(const RepoRef& ref, const std::string& body) {
  FLASH_ASSIGN_OR_RETURN(const Json json, parse_json(body));
  RepoInfo info;
  info.ref = ref;
  info.commit = json.is_object() ? text_of(json, "sha") : std::string();
  if (!is_commit(info.commit)) return invalid_input("there is no commit in it");
  const auto siblings = json.find("siblings");
  if (siblings == json.end() || !siblings->is_array()) {
    return invalid_input("there is no list of files in it");
  }
  if (siblings->size() > kFilesMax) return invalid_input("too many files");
  for (const Json& entry : *siblings) {
    FLASH_ASSIGN_OR_RETURN(RemoteFile file, parse_file(entry));
    info.files.push_back(std::move(file));
  }
  std::sort(
      info.files.begin(),
      info.files.end(),
      [](const RemoteFile& a, const RemoteFile& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(info.files.begin(),
                         info.files.end(),
                         [](const RemoteFile& a, const RemoteFile& b) {
                           return a.name == b.name;
                         });
  if (twice != info.files.end()) {
    return invalid_input(fmt::format("{} is listed twice", quote(twice->name)));
  }
  return info;
}

// What to do about 401 and 403.
std::string advice(const HttpClient& client,
                   const RepoRef& ref,
                   const std::string& code) {
  const Settings& settings = client.settings();
  const bool anonymous = settings.token.empty();
  const std::string page = settings.endpoint + "/" + ref.id;
  if (code == "GatedRepo") {
    return fmt::format(
        "is gated: open {} and accept its conditions, {}",
        page,
        anonymous
            ? "then set HF_TOKEN to a token of that account (from its settings "
              "page), or run `hf auth login`"
            : fmt::format("with the account of the token in {}",
                          settings.token_from));
  }
  if (!anonymous) {
    return fmt::format(
        "may not be read with the token from {}: it may be wrong or expired, "
        "or {} is private or does not exist",
        settings.token_from,
        ref.id);
  }
  return "does not exist, or is private or gated: check the name; for a "
         "private or gated one set HF_TOKEN to a token that may read it, or "
         "run `hf auth login`";
}

// The headers of a file. Mirrors without HEAD send them with its first byte.
Result<HttpResponse> fetch_head(HttpClient& client, const std::string& url) {
  HttpRequest request;
  request.url = url;
  request.head = true;
  request.total_ms = client.settings().timeout_ms * kTotalOverIdle;
  FLASH_ASSIGN_OR_RETURN(HttpResponse response, client.send(request));
  if (response.status != 405 && response.status != 501) return response;
  request.head = false;
  request.stay = true;
  request.range = std::pair(uint64_t{0}, uint64_t{0});
  request.body_max = kListingBytesMax;  // where there are no ranges either
  return client.send(request);
}

// What the headers say of a file's length.
std::optional<uint64_t> length_in(const HttpResponse& response) {
  const std::string linked = response.header("x-linked-size");
  if (!linked.empty()) return parse_length(linked);
  if (!response.location.empty()) return std::nullopt;  // that of a redirect
  const std::string range = response.header("content-range");
  return range.empty() ? parse_length(response.header("content-length"))
                       : total_of_range(range);
}

}  // namespace

const RemoteFile* RepoInfo::find(std::string_view name) const {
  const auto found = std::lower_bound(
      files.begin(),
      files.end(),
      name,
      [](const RemoteFile& file, auto wanted) { return file.name < wanted; });
  return found != files.end() && found->name == name ? &*found : nullptr;
}

std::optional<uint64_t> parse_length(std::string_view text) {
  uint64_t number = 0;
  const auto [stop, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || stop != text.data() + text.size() ||
      number > kSizeMax) {
    return std::nullopt;
  }
  return number;
}

std::optional<uint64_t> total_of_range(const std::string& content_range) {
  const size_t slash = content_range.rfind('/');
  if (!content_range.starts_with("bytes ") || slash == content_range.npos) {
    return std::nullopt;
  }
  return parse_length(std::string_view(content_range).substr(slash + 1));
}

std::optional<uint64_t> start_of_range(const std::string& content_range) {
  constexpr std::string_view kUnit = "bytes ";
  const size_t dash = content_range.find('-');
  if (!content_range.starts_with(kUnit) || dash == content_range.npos) {
    return std::nullopt;
  }
  return parse_length(std::string_view(content_range)
                          .substr(kUnit.size(), dash - kUnit.size()));
}

Status http_error(const HttpClient& client,
                  const RepoRef& ref,
                  const HttpResponse& response,
                  const std::string& what) {
  const std::string code = response.header("x-error-code");
  switch (response.status) {
    case 401:
    case 403:
      return invalid_input(fmt::format("{} {} (the hub answers {})",
                                       ref.id,
                                       advice(client, ref, code),
                                       response.status));
    case 404:
      if (code == "RevisionNotFound") {
        return invalid_input(fmt::format(
            "{} has no branch, tag or commit {}", ref.id, quote(ref.revision)));
      }
      return invalid_input(
          fmt::format("{}: the hub {} knows nothing of it: check the name",
                      what,
                      client.settings().endpoint));
    default: {
      std::string said = response.header("x-error-message");
      if (!said.empty()) said = ": " + printable(said, 200);
      return io_error(fmt::format(
          "{}: the server answers {}{}", what, response.status, said));
    }
  }
}

Result<RepoInfo> fetch_info(HttpClient& client, const RepoRef& ref) {
  if (client.origin_of(client.settings().endpoint).empty()) {
    return invalid_input(
        fmt::format("HF_ENDPOINT is {}, which is no http(s) address",
                    quote(client.settings().endpoint)));
  }
  HttpRequest request;
  // A revision is one part of this path: its slashes are escaped.
  std::string revision;
  for (const char c : url_path(ref.revision)) {
    revision += c == '/' ? std::string("%2F") : std::string(1, c);
  }
  request.url = fmt::format("{}/api/models/{}/revision/{}?blobs=true",
                            client.settings().endpoint,
                            ref.id,
                            revision);
  request.body_max = kListingBytesMax;
  request.total_ms = client.settings().timeout_ms * kTotalOverIdle;
  FLASH_ASSIGN_OR_RETURN(HttpResponse response, client.send(request));
  // Some mirrors have no addresses for revisions.
  if (response.status == 404 && response.header("x-error-code").empty() &&
      ref.revision == "main") {
    request.url = fmt::format(
        "{}/api/models/{}?blobs=true", client.settings().endpoint, ref.id);
    FLASH_ASSIGN_OR_RETURN(response, client.send(request));
  }
  if (!response.success()) {
    return http_error(client, ref, response, ref.id);
  }
  auto info = parse_info(ref, response.body);
  if (!info.ok()) {
    return info.status().at(fmt::format("{}: what {} says of it cannot be used",
                                        ref.id,
                                        client.settings().endpoint));
  }
  return info;
}

std::string file_url(const Settings& settings,
                     const RepoInfo& info,
                     const RemoteFile& file) {
  return fmt::format("{}/{}/resolve/{}/{}",
                     settings.endpoint,
                     info.ref.id,
                     info.commit,
                     url_path(file.name));
}

Status complete(HttpClient& client, const RepoInfo& info, RemoteFile& file) {
  if (file.sized && !file.etag.empty()) return Status();
  const std::string what = info.ref.id + "/" + file.name;
  FLASH_ASSIGN_OR_RETURN(
      const HttpResponse response,
      fetch_head(client, file_url(client.settings(), info, file)));
  const auto length = length_in(response);
  const bool empty = response.status == 416 && length == 0;
  if (!response.success() && response.location.empty() && !empty) {
    return http_error(client, info.ref, response, what);
  }
  const std::string commit = response.header("x-repo-commit");
  if (!commit.empty() && commit != info.commit) {
    return io_error(
        fmt::format("{}: belongs to another commit than was asked for", what));
  }
  const std::string linked = response.header("x-linked-etag");
  const std::string etag =
      normal_etag(linked.empty() ? response.header("etag") : linked);
  if (file.etag.empty()) {
    if (etag.empty()) {
      return invalid_input(fmt::format(
          "{}: the server gives it no etag, so nothing could be checked",
          what));
    }
    file.etag = etag;
    file.lfs = is_sha256(etag);
  }
  if (!file.sized) {
    if (!length) {
      return invalid_input(
          fmt::format("{}: the server does not say how long it is", what));
    }
    file.size = *length;
    file.sized = true;
  }
  return Status();
}

}  // namespace mlx_flash::hub
