// SPDX-License-Identifier: MIT

// `mlx-flash run`: one prompt to text, streamed as it is decoded.

#include <memory>
#include <utility>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/saved_session.h"
#include "cli/signals.h"
#include "cli/text_input.h"

namespace mlx_flash {
namespace {

struct RunOptions {
  EngineOptions engine;
  PromptOptions prompt;
  GenerateOptions generate;
  std::string session;  // of --session; empty: none
  bool json = false;
  bool stats = false;
};

// The answer as it grows: to stdout as text, or kept for the JSON object.
class Answer {
 public:
  explicit Answer(bool json) : json_(json) {}

  Status add(const std::string& piece) {
    if (piece.empty()) return {};
    if (json_) {
      text_ += piece;
      return {};
    }
    ends_line_ = piece.back() == '\n';
    return write_stdout(piece);
  }
  // A shell's next prompt starts on a line of its own.
  Status finish() {
    return json_ || ends_line_ ? Status() : write_stdout("\n");
  }
  const std::string& text() const { return text_; }

 private:
  bool json_;
  bool ends_line_ = false;
  std::string text_;  // if json_
};

Status report_run(const RunOptions& options,
                  const RunReport& report,
                  const Generation& generation,
                  const Answer& answer) {
  if (options.stats) write_stderr(stats_table(report));
  if (options.json) {
    return write_json_line(run_json(report,
                                    generation.tokens(),
                                    answer.text(),
                                    generation.finish_reason()));
  }
  if (!options.engine.quiet) write_stderr(figures_line(report) + "\n");
  return {};
}

Result<int> run(const RunOptions& options) {
  FLASH_ASSIGN_OR_RETURN(const Prompt prompt, read_prompt(options.prompt));
  FLASH_ASSIGN_OR_RETURN(const Config config, options.engine.resolve_config());
  SignalScope signals(SignalScope::Mode::kOnce);
  const double start_s = now_seconds();
  FLASH_ASSIGN_OR_RETURN(const auto engine, Engine::open(config));
  const double load_s = now_seconds() - start_s;

  FLASH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                         encode_prompt(engine->text(), prompt, options.prompt));
  FLASH_RETURN_IF_ERROR(check_prompt_ids(*engine, ids));

  const auto session = engine->new_session();
  FLASH_ASSIGN_OR_RETURN(const RestoredSession restored,
                         take_up(*session, options.session));
  FLASH_ASSIGN_OR_RETURN(const size_t keep, keep_prefix(*session, ids));
  signals.watch(session.get());
  Progress progress("reading the prompt", "tokens", !options.engine.quiet);
  GenerateOptions generate = options.generate;
  generate.prefill_progress = [&progress](size_t done, size_t total) {
    progress.update(done, total);
  };
  Generation generation =
      session->generate(std::span(ids).subspan(keep), generate);
  Answer answer(options.json);
  while (const auto piece = generation.next()) {
    progress.clear();
    FLASH_RETURN_IF_ERROR(answer.add(piece->text));
  }
  progress.clear();
  signals.watch(nullptr);
  FLASH_RETURN_IF_ERROR(answer.finish());
  FLASH_RETURN_IF_ERROR(options.engine.write_trace(*engine));
  if (generation.finish_reason() == FinishReason::kError) {
    return generation.status();
  }
  RunReport report = make_report(
      *engine, options.engine.name(config.model), generation.stats(), load_s);
  report.stats.prompt_tokens = ids.size();
  FLASH_RETURN_IF_ERROR(report_run(options, report, generation, answer));
  if (!options.session.empty()) {
    FLASH_RETURN_IF_ERROR(session->save(options.session, restored.note));
  }
  return signals.caught() != 0 ? signals.exit_code() : 0;
}

}  // namespace

CommandFn add_run(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  add_engine_options(app, options->engine);
  add_prompt_options(app, options->prompt);
  add_sampling_options(app, options->generate);
  add_session_option(app, options->session);
  app.add_flag("--json", options->json, "One JSON object on stdout, no text")
      ->group("Output");
  app.add_flag("--stats", options->stats, "A table of figures on stderr")
      ->group("Output");
  return [options] { return run(*options); };
}

}  // namespace mlx_flash
