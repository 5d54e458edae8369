// SPDX-License-Identifier: MIT

// `mlx-flash bench`: measures prefill and decode of a model under a budget, or
// the kernels alone.

#include <memory>
#include <string>

#include "cli/bench_disk.h"
#include "cli/bench_kernels.h"
#include "cli/bench_model.h"
#include "cli/commands.h"
#include "cli/options.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

struct BenchOptions {
  BenchModelOptions model;
  bool disk = false;
  bool kernels_alone = false;  // --kernels without a value
  std::string only;
};

Result<int> bench(const BenchOptions& options) {
  if (options.kernels_alone) {
    return bench_kernels({.threads = options.model.engine.config.threads,
                          .only = options.only,
                          .json = options.model.json,
                          .quiet = options.model.engine.quiet});
  }
  if (options.disk) {
    FLASH_ASSIGN_OR_RETURN(const Config config,
                           options.model.engine.resolve_config());
    return bench_disk({.model = config.model,
                       .io = config.io,
                       .json = options.model.json,
                       .quiet = options.model.engine.quiet});
  }
  return bench_model(options.model);
}

}  // namespace

CommandFn add_bench(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  add_engine_options(app, options->model.engine);
  BenchOptions& o = *options;
  BenchModelOptions& m = o.model;
  const auto count = [&app](
                         const char* flag, uint32_t& target, const char* help) {
    add_value(app, flag, "N", help, [&target](const std::string& text) {
      return assign(parse_count(text, 1, uint64_t{1} << 24), target);
    })->group("Measurement");
  };
  count(
      "--prompt-tokens", m.prompt_tokens, "Length of the prompt (default 128)");
  count("--max-tokens,-n", m.generated_tokens, "Tokens decoded (default 32)");
  count("--runs",
        m.runs,
        "Times it is measured; printed are the figures of the median (default "
        "1)");
  app.add_flag("--probe",
               m.probe,
               "Measures the disk after it, and prints the share of it that "
               "decoding had")
      ->group("Measurement");
  app.add_flag("--warm-up",
               m.warm_up,
               "Answers the prompt once before, so that what the budget keeps "
               "in memory is there")
      ->group("Measurement");
  app.add_flag("--disk",
               o.disk,
               "Measures the disk under the model instead: request sizes, "
               "requests under way, latency")
      ->group("Measurement");
  app.add_flag("--json", m.json, "One JSON object on stdout")->group("Output");
  // As every command has it, and alone: the kernels without a model.
  CLI::Option* kernels = app.get_option("--kernels");
  const std::string help = kernels->get_description();
  const std::string group = kernels->get_group();
  app.remove_option(kernels);
  add_value(app,
            "--kernels",
            "[auto|fast|stock]",
            "Alone: measures the kernels beside memory and arithmetic, without "
            "a model. " +
                help,
            [&o](const std::string& text) {
              o.kernels_alone = text.empty();
              return o.kernels_alone ? Status()
                                     : assign(parse_kernels(text),
                                              o.model.engine.config.kernels);
            })
      ->expected(0, 1)
      ->group(group);
  add_value(app,
            "--only",
            "TEXT",
            "With --kernels alone: weight formats with TEXT in their name",
            [&o](const std::string& text) {
              o.only = text;
              return Status();
            })
      ->group("Measurement");
  return [options] { return bench(*options); };
}

}  // namespace mlx_flash
