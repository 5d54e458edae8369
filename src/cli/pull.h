// SPDX-License-Identifier: MIT
#pragma once

// Downloads a repository of the hub. `pull` runs it, and so does `plan` for a
// model that is not there yet; --model runs `pull` as a process of its own
// (hub_model.h).

#include <string>

#include "hub/names.h"
#include "hub/selection.h"
#include "mlx_flash/config.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

struct PullRequest {
  hub::RepoRef ref;
  hub::Choice choice;
  Config config;  // what to plan for; without `model`
  bool plan_only = false;
  bool text_only = false;    // tokenizer and config, no weights
  bool for_command = false;  // the model has to fit; nothing goes to stdout
  long parent = 0;           // of for_command: end when this process ends
  bool json = false;
  bool quiet = false;
};

// The process's exit code.
Result<int> pull_model(const PullRequest& request);

}  // namespace mlx_flash
