// SPDX-License-Identifier: MIT

// `mlx-flash bench`: measures prefill and decode of a model under a budget, or
// the kernels alone.

#include <memory>
#include <string>

#include "base/clock.h"
#include "cli/bench_disk.h"
#include "cli/bench_kernels.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/signals.h"
#include "cli/text_input.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

struct BenchOptions {
  EngineOptions engine;
  uint32_t prompt_tokens = 128;
  uint32_t generated_tokens = 32;
  bool json = false;
  bool warm_up = false;
  bool disk = false;
  bool kernels_alone = false;  // --kernels without a value
  std::string only;
};

// Ids spread over the vocabulary, the same in every run: a step that shares no
// factor with a power of two.
std::vector<int32_t> spread_ids(size_t count, size_t vocab_size) {
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>((i * 7919 + 1) % vocab_size);
  }
  return ids;
}

// Answers the prompt once and forgets it: what is to stay in memory is there.
Status warm_up(Engine& engine,
               const std::vector<int32_t>& ids,
               SignalScope& signals) {
  const auto session = engine.new_session();
  signals.watch(session.get());
  GenerateOptions one;
  one.max_tokens = 1;
  Generation generation = session->generate(ids, one);
  while (generation.next()) {
  }
  signals.watch(nullptr);
  return generation.finish_reason() == FinishReason::kError
             ? generation.status()
             : Status();
}

Result<int> bench(const BenchOptions& options) {
  if (options.kernels_alone) {
    return bench_kernels({.threads = options.engine.config.threads,
                          .only = options.only,
                          .json = options.json,
                          .quiet = options.engine.quiet});
  }
  FLASH_ASSIGN_OR_RETURN(Config config, options.engine.resolve_config());
  if (options.disk) {
    return bench_disk({.model = config.model,
                       .io = config.io,
                       .json = options.json,
                       .quiet = options.engine.quiet});
  }
  if (config.context == 0) {
    config.context = options.prompt_tokens + options.generated_tokens;
  }
  SignalScope signals(SignalScope::Mode::kOnce);
  const double start_s = now_seconds();
  FLASH_ASSIGN_OR_RETURN(const auto engine, Engine::open(config));
  const double load_s = now_seconds() - start_s;

  const auto ids = spread_ids(options.prompt_tokens, engine->vocab_size());
  FLASH_RETURN_IF_ERROR(check_prompt_ids(*engine, ids));
  if (options.warm_up) {
    FLASH_RETURN_IF_ERROR(warm_up(*engine, ids, signals));
    if (signals.caught() != 0) return signals.exit_code();
  }
  const auto session = engine->new_session();
  signals.watch(session.get());
  Progress progress("measuring", "tokens", !options.engine.quiet);
  const size_t total = ids.size() + options.generated_tokens;
  GenerateOptions generate;
  generate.max_tokens = options.generated_tokens;
  generate.ignore_eos = true;
  generate.prefill_progress = [&](size_t done, size_t) {
    progress.update(done, total);
  };
  Generation generation = session->generate(ids, generate);
  std::string text;
  while (const auto piece = generation.next()) {
    text += piece->text;
    progress.update(ids.size() + generation.tokens().size(), total);
  }
  progress.clear();
  signals.watch(nullptr);
  if (generation.finish_reason() == FinishReason::kError) {
    return generation.status();
  }
  FLASH_RETURN_IF_ERROR(options.engine.write_trace(*engine));
  const RunReport report = make_report(
      *engine, options.engine.name(config.model), generation.stats(), load_s);
  FLASH_RETURN_IF_ERROR(
      options.json
          ? write_json_line(run_json(
                report, generation.tokens(), text, generation.finish_reason()))
          : write_stdout(stats_table(report)));
  return signals.caught() != 0 ? signals.exit_code() : 0;
}

}  // namespace

CommandFn add_bench(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  add_engine_options(app, options->engine);
  BenchOptions& o = *options;
  const auto count = [&app](
                         const char* flag, uint32_t& target, const char* help) {
    add_value(app, flag, "N", help, [&target](const std::string& text) {
      return assign(parse_count(text, 1, uint64_t{1} << 24), target);
    })->group("Measurement");
  };
  count(
      "--prompt-tokens", o.prompt_tokens, "Length of the prompt (default 128)");
  count("--max-tokens,-n", o.generated_tokens, "Tokens decoded (default 32)");
  app.add_flag("--warm-up",
               o.warm_up,
               "Answers the prompt once before, so that what the budget keeps "
               "in memory is there")
      ->group("Measurement");
  app.add_flag("--disk",
               o.disk,
               "Measures the disk under the model instead: request sizes, "
               "requests under way, latency")
      ->group("Measurement");
  app.add_flag("--json", o.json, "One JSON object on stdout")->group("Output");
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
              return o.kernels_alone
                         ? Status()
                         : assign(parse_kernels(text), o.engine.config.kernels);
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
