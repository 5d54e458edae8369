// SPDX-License-Identifier: MIT

// `mlx-flash plan`: what a budget would be spent on. Reads for a
// second to see how fast the disk is, and runs nothing.

#include <memory>

#include "cli/bench_disk.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/hub_model.h"
#include "cli/options.h"
#include "cli/pull.h"
#include "cli/report.h"

namespace mlx_flash {
namespace {

struct PlanOptions {
  EngineOptions engine;
  bool json = false;
};

// Of a model that is not downloaded the headers are enough.
Result<int> plan_remote(const PlanOptions& options) {
  PullRequest request;
  FLASH_ASSIGN_OR_RETURN(request.ref, hub_ref(options.engine.engine_request()));
  request.choice.file = request.ref.file;
  request.config = options.engine.config;
  request.plan_only = true;
  request.json = options.json;
  request.quiet = options.engine.quiet;
  return pull_model(request);
}

Result<int> plan(const PlanOptions& options) {
  if (is_hub_id(options.engine.model)) {
    FLASH_ASSIGN_OR_RETURN(const bool cached,
                           is_in_hub_cache(options.engine.engine_request()));
    if (!cached) return plan_remote(options);
  }
  FLASH_ASSIGN_OR_RETURN(Config config, options.engine.resolve_config());
  FLASH_ASSIGN_OR_RETURN(config.disk_bytes_per_s,
                         disk_speed(config.model, config.io));
  FLASH_ASSIGN_OR_RETURN(const PlanSummary plan, Engine::plan_only(config));
  if (options.json) {
    FLASH_RETURN_IF_ERROR(write_json_line(plan_json(plan)));
  } else {
    FLASH_RETURN_IF_ERROR(
        write_stdout(plan_table(plan, options.engine.name(config.model))));
  }
  return 0;
}

}  // namespace

CommandFn add_plan(CLI::App& app) {
  auto options = std::make_shared<PlanOptions>();
  add_engine_options(app, options->engine);
  app.add_flag("--json", options->json, "One JSON object on stdout")
      ->group("Output");
  return [options] { return plan(*options); };
}

}  // namespace mlx_flash
