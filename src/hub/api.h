// SPDX-License-Identifier: MIT
#pragma once

// What the hub says about a repository: its commit, its files with sizes and
// digests. Answers are bounded and checked; what contradicts itself is refused.

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "hub/http.h"
#include "hub/names.h"

namespace mlx_flash::hub {

struct RemoteFile {
  std::string name;  // passed check_file_name
  uint64_t size = 0;
  bool sized = false;  // size is known
  std::string etag;    // the blob's name in the cache; empty: not known yet
  bool lfs = false;    // etag is the sha256 of the content
};

struct RepoInfo {
  RepoRef ref;
  std::string commit;
  std::vector<RemoteFile> files;  // by name, no two equal

  const RemoteFile* find(std::string_view name) const;  // null: none
};

// One request. Fails with what to do where the repository is gated, private,
// misspelt, or lists names that lead out of its folder.
Result<RepoInfo> fetch_info(HttpClient& client, const RepoRef& ref);

// Fills in what the listing did not say (a HEAD request), so that size and
// etag are known.
Status complete(HttpClient& client, const RepoInfo& info, RemoteFile& file);

// ENDPOINT/org/name/resolve/COMMIT/FILE
std::string file_url(const Settings& settings,
                     const RepoInfo& info,
                     const RemoteFile& file);

// The Status of an answer that is not 2xx: `what` was asked for.
Status http_error(const HttpClient& client,
                  const RepoRef& ref,
                  const HttpResponse& response,
                  const std::string& what);

// "bytes 0-99/1234" -> 1234; nothing if it does not say.
std::optional<uint64_t> total_of_range(const std::string& content_range);
// The same -> 0.
std::optional<uint64_t> start_of_range(const std::string& content_range);
std::optional<uint64_t> parse_length(std::string_view text);

}  // namespace mlx_flash::hub
