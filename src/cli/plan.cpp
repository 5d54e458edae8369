// SPDX-License-Identifier: MIT

// `mlx-flash plan`: what a budget would be spent on. Runs nothing.

#include <memory>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "cli/report.h"

namespace mlx_flash {
namespace {

struct PlanOptions {
  EngineOptions engine;
  bool json = false;
};

// A budget that is too small has no plan, but an answer: it does not fit, and
// this is one that would, within a few MB of the smallest (the first attempt
// still occupies memory when the second is planned).
Result<PlanSummary> plan_even_if_small(const Config& config) {
  auto plan = Engine::plan_only(config);
  if (plan.ok() || config.ram_bytes == 0) return plan;
  Config roomy = config;
  roomy.ram_bytes = uint64_t{1} << 40;
  const auto enough = Engine::plan_only(roomy);
  if (!enough.ok() || enough->ram_min_bytes <= config.ram_bytes) return plan;
  return PlanSummary{.weights_bytes = enough->weights_bytes,
                     .pass_bytes = enough->pass_bytes,
                     .ram_bytes = config.ram_bytes,
                     .ram_min_bytes = enough->ram_min_bytes,
                     .streamed_bytes = enough->pass_bytes,
                     .runtime_bytes = enough->runtime_bytes};
}

Result<int> plan(const PlanOptions& options) {
  FLASH_ASSIGN_OR_RETURN(const Config config, options.engine.resolve_config());
  FLASH_ASSIGN_OR_RETURN(const PlanSummary plan, plan_even_if_small(config));
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
