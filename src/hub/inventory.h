// SPDX-License-Identifier: MIT
#pragma once

// What is in the cache, and how it is taken out again. Nothing outside the
// cache folder is ever removed: links are unlinked, never followed.

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "hub/names.h"
#include "hub/selection.h"
#include "hub/settings.h"

namespace mlx_flash::hub {

struct CachedFile {
  std::string name;
  uint64_t bytes = 0;
  std::string blob;  // path of what it leads to; itself where there is no link
};

struct CachedRevision {
  std::string commit;
  std::string path;               // of the snapshot
  std::vector<std::string> refs;  // "main"
  std::vector<CachedFile> files;
  int64_t used_s = 0;  // when the last of its files was read; Unix time
};

struct CachedRepo {
  std::string id;
  std::string folder;
  uint64_t bytes = 0;             // on the disk, each blob once
  uint64_t unfinished_bytes = 0;  // of them, parts of downloads
  std::vector<CachedRevision> revisions;
};

// By name. A folder that is no repository's, or a link, is passed over.
Result<std::vector<CachedRepo>> list_cache(const std::string& cache);

struct Removal {
  std::string id;
  std::vector<std::string> paths;  // with all that is below them
  uint64_t bytes = 0;              // that become free
  uint64_t files = 0;              // names of models' files that go
};

// What `rm` would remove: the repository; with a revision, this snapshot; with
// a file (its name or quantisation), this file; and then the blobs that
// nothing refers to any more. Fails if there is no such thing, if a download
// of it is under way, or if parts of it lie outside the cache.
Result<Removal> plan_removal(const Settings& settings,
                             const RepoRef& ref,
                             bool whole_repository);
Status remove(const Removal& removal);

}  // namespace mlx_flash::hub
