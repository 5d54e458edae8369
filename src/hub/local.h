// SPDX-License-Identifier: MIT
#pragma once

// What of a repository the cache has already; no network.

#include <optional>
#include <string>
#include <vector>

#include "base/status.h"
#include "hub/cache.h"
#include "hub/names.h"
#include "hub/selection.h"

namespace mlx_flash::hub {

struct LocalModel {
  std::string path;  // the snapshot's folder, or a GGUF file in it
  std::string commit;
};

// Files of a snapshot folder that are there (a link that leads nowhere is
// not), with sizes, at any depth.
std::vector<NamedSize> snapshot_files(const std::string& snapshot);

// The model if all the files that it needs are there: config.json, a
// tokenizer, and all shards; or the GGUF file `file` names with all its parts
// (without a name, the only one). Nothing: some are missing. Fails where the
// cache has several GGUF files and none is named.
Result<std::optional<LocalModel>> find_local(const RepoCache& cache,
                                             const RepoRef& ref);

}  // namespace mlx_flash::hub
