// SPDX-License-Identifier: MIT
#pragma once

// A download from beginning to end, in steps between which the caller may look
// (and stop): what the repository has; the small files; the headers of the
// weights, from which a plan can be made; the weights.
//
//   Pull::start   asks the hub, chooses files, makes the cache's folders
//   fetch_first   config, index, tokenizer
//   sketch        a folder of holes with the weights' sizes and headers
//   fetch_weights the rest; then the revision's name leads to the snapshot
//
// Not thread-safe.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "hub/api.h"
#include "hub/cache.h"
#include "hub/download.h"
#include "hub/http.h"
#include "hub/selection.h"

namespace mlx_flash::hub {

struct PullSummary {
  std::string path;  // of the snapshot, or of the GGUF file in it
  std::string commit;
  uint64_t files = 0;
  uint64_t bytes = 0;          // of them
  uint64_t fetched_bytes = 0;  // of them, over the network
};

class Pull {
 public:
  using Observer = std::function<void(const DownloadProgress&)>;

  // `settings` and `control` outlive it. Fails where there is nothing to run,
  // something to choose or no way in; and offline.
  static Result<std::unique_ptr<Pull>> start(const Settings& settings,
                                             const Control& control,
                                             const RepoRef& ref,
                                             const Choice& choice);

  const RepoInfo& info() const { return info_; }
  bool has_weights() const { return !weights_.empty(); }
  uint64_t weights_bytes() const;
  // Nothing but what is in the cache already would be fetched.
  bool weights_cached() const;

  Status fetch_first(const Observer& observer);

  // Bytes [first, last] of a weight file (few: they are held in memory).
  using HeaderReader =
      std::function<Result<std::string>(uint64_t first, uint64_t last)>;
  // Makes `path` a file of `size` bytes; any thread.
  using HeaderWriter = std::function<Status(
      const HeaderReader& read, const std::string& path, uint64_t size)>;
  // Makes `folder` (which exists) look like the model: small files as links,
  // weights as `write_header` makes them. Returns what to give to a planner.
  Result<std::string> sketch(const std::string& folder,
                             const HeaderWriter& write_header);

  // Fails before the first byte where the disk has no room for them.
  Status fetch_weights(const Observer& observer);

  // Without weights: the revision's name leads to what there is.
  Status finish();

  PullSummary summary() const;
  const RepoCache& cache() const { return cache_; }

 private:
  Pull(std::shared_ptr<const CurlApi> curl,
       const Settings& settings,
       const Control& control,
       RepoInfo info,
       Selection selection);

  Status complete_all(std::vector<RemoteFile>& files);
  Status choose_weights();
  Status check_space(const std::vector<RemoteFile>& files) const;
  Status download(std::vector<RemoteFile>& files, const Observer& observer);
  Status sketch_weights(const std::string& folder,
                        const HeaderWriter& write_header);
  Result<std::string> read_range(HttpClient& client,
                                 const RemoteFile& file,
                                 uint64_t first,
                                 uint64_t last);

  std::shared_ptr<const CurlApi> curl_;
  const Settings& settings_;
  const Control& control_;
  HttpClient client_;
  RepoInfo info_;
  Selection selection_;
  RepoCache cache_;
  std::vector<RemoteFile> first_;
  std::vector<RemoteFile> weights_;
  uint64_t fetched_bytes_ = 0;
};

}  // namespace mlx_flash::hub
