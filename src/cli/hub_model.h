// SPDX-License-Identifier: MIT
#pragma once

// --model org/name: from the hub cache, downloaded first where it is not there.

#include <string>
#include <vector>

#include "cli/model_path.h"
#include "hub/names.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

// The repository, revision and file a request names. Fails if they contradict.
Result<hub::RepoRef> hub_ref(const ModelRequest& request);

// True if nothing of it would have to be downloaded.
Result<bool> is_in_hub_cache(const ModelRequest& request);

// The snapshot's folder, or the GGUF file in it. A download runs as a process
// of its own (`pull`), so that the libraries it needs cost the model's budget
// nothing; that process says what went wrong, and this one only ends.
// REQUIRES: hub::looks_like_repo(request.model)
Result<std::string> hub_model(const ModelRequest& request);

}  // namespace mlx_flash
