// SPDX-License-Identifier: MIT

// `mlx-flash pull`: a hub repository into the cache.

#include "cli/pull.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>

#include "base/log.h"
#include "cli/bench_disk.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "cli/plan_folder.h"
#include "cli/pull_progress.h"
#include "cli/report.h"
#include "cli/sketch.h"
#include "cli/stop_signal.h"
#include "cli/values.h"
#include "hub/local.h"
#include "hub/pull.h"

namespace mlx_flash {
namespace {

constexpr const char* kStopped =
    "stopped; what was downloaded is kept, the same command goes on with it\n";

constexpr uint64_t kProbeFrom = uint64_t{200} << 20;

std::string shown(const hub::RepoRef& ref) {
  return ref.revision == "main" ? ref.id : ref.id + "@" + ref.revision;
}

// One pull on its way through its steps.
class PullRun {
 public:
  PullRun(const PullRequest& request,
          const hub::Settings& settings,
          const std::atomic<bool>& stop)
      : request_(request),
        settings_(settings),
        progress_(shown(request.ref), request.quiet),
        control_{stop,
                 [this](const std::string& text) { progress_.note(text); }} {}

  Result<int> run() {
    FLASH_ASSIGN_OR_RETURN(
        pull_,
        hub::Pull::start(settings_, control_, request_.ref, request_.choice));
    FLASH_RETURN_IF_ERROR(pull_->fetch_first(observer()));
    if (request_.plan_only) return plan_only();
    if (!request_.text_only || pull_->summary().path.ends_with(".gguf")) {
      FLASH_RETURN_IF_ERROR(say_plan());
      FLASH_RETURN_IF_ERROR(pull_->fetch_weights(observer()));
    } else {
      FLASH_RETURN_IF_ERROR(pull_->finish());
    }
    progress_.clear();
    return report();
  }

 private:
  hub::Pull::Observer observer() {
    return [this](const hub::DownloadProgress& progress) {
      progress_.update(progress);
    };
  }

  Result<PlanSummary> plan() {
    FLASH_ASSIGN_OR_RETURN(const PlanFolder folder,
                           PlanFolder::make(pull_->cache().folder()));
    Config config = request_.config;
    FLASH_ASSIGN_OR_RETURN(config.model,
                           pull_->sketch(folder.path(), write_sketch));
    // Quicker downloaded than measured.
    if (request_.plan_only || pull_->weights_bytes() >= kProbeFrom) {
      const auto speed = folder.disk_speed(config.io);
      config.disk_bytes_per_s = speed.ok() ? *speed : 0;
    }
    return Engine::plan_only(config);
  }

  Result<int> plan_only() {
    FLASH_ASSIGN_OR_RETURN(const PlanSummary summary, plan());
    progress_.clear();
    FLASH_RETURN_IF_ERROR(
        request_.json ? write_json_line(plan_json(summary))
                      : write_stdout(plan_table(summary, shown(request_.ref))));
    return 0;
  }

  // Before the long part. A model that a command is to run has to fit; a `pull`
  // may be for another machine.
  Status say_plan() {
    if (pull_->weights_cached() || !request_.choice.include.empty()) {
      return Status();
    }
    const auto summary = plan();
    if (control_.stop.load()) return cancelled("stopped");
    if (!summary.ok()) {
      if (request_.for_command) return summary.status();
      progress_.note("no plan: " + summary.status().message());
      return Status();
    }
    const bool fits = summary->ram_bytes >= summary->ram_min_bytes;
    if (!fits && request_.for_command) {
      return invalid_input(fmt::format(
          "{} would not run in {}: it needs at least {}; nothing of its "
          "weights was downloaded",
          shown(request_.ref),
          format_bytes(static_cast<double>(summary->ram_bytes)),
          format_bytes(static_cast<double>(summary->ram_min_bytes))));
    }
    progress_.note(plan_sentence(*summary, shown(request_.ref)));
    return Status();
  }

  static std::string plan_sentence(const PlanSummary& plan,
                                   const std::string& name) {
    const auto bytes = [](uint64_t count) {
      return format_bytes(static_cast<double>(count));
    };
    std::string text =
        fmt::format("{}: {} of weights", name, bytes(plan.weights_bytes));
    if (plan.ram_bytes < plan.ram_min_bytes) {
      return text + fmt::format("; too much for {}, it needs at least {}",
                                bytes(plan.ram_bytes),
                                bytes(plan.ram_min_bytes));
    }
    text += fmt::format(" will run in {}, {} of them kept in memory",
                        bytes(plan.ram_bytes),
                        bytes(plan.pinned_bytes));
    if (plan.predicted_decode_tok_s > 0) {
      text += fmt::format(", at about {:.2g} tokens/s",
                          plan.predicted_decode_tok_s);
    }
    return text;
  }

  Result<int> report() {
    if (request_.for_command) return 0;
    const hub::PullSummary summary = pull_->summary();
    if (request_.json) {
      FLASH_RETURN_IF_ERROR(
          write_json_line(Json{{"model", request_.ref.id},
                               {"revision", request_.ref.revision},
                               {"commit", summary.commit},
                               {"path", summary.path},
                               {"files", summary.files},
                               {"bytes", summary.bytes},
                               {"fetched_bytes", summary.fetched_bytes}}));
      return 0;
    }
    if (!request_.quiet) {
      write_stderr(fmt::format(
          "{}: {} files, {}, {} of them downloaded now\n",
          shown(request_.ref),
          summary.files,
          format_bytes(static_cast<double>(summary.bytes)),
          format_bytes(static_cast<double>(summary.fetched_bytes))));
    }
    FLASH_RETURN_IF_ERROR(write_stdout(summary.path + "\n"));
    return 0;
  }

  const PullRequest& request_;
  const hub::Settings& settings_;
  PullProgress progress_;
  hub::Control control_;
  std::unique_ptr<hub::Pull> pull_;
};

// Offline there is nothing to ask: what the cache has is the answer.
Result<int> pull_offline(const PullRequest& request,
                         const hub::Settings& settings) {
  const hub::RepoCache cache(settings.cache, request.ref.id, settings.symlinks);
  hub::RepoRef ref = request.ref;
  ref.file = request.choice.file;
  FLASH_ASSIGN_OR_RETURN(const auto local, hub::find_local(cache, ref));
  if (!local || request.plan_only || !request.choice.include.empty()) {
    return invalid_input(fmt::format(
        "{}: HF_HUB_OFFLINE is set, and the cache {} does not have all of it",
        shown(request.ref),
        settings.cache));
  }
  if (!request.for_command) {
    FLASH_RETURN_IF_ERROR(write_stdout(local->path + "\n"));
  }
  return 0;
}

struct PullOptions {
  PullRequest request;
  std::string repo;
  std::string revision;
  bool debug = false;
};

Result<int> pull(const PullOptions& options) {
  set_log_level(options.debug           ? LogLevel::kDebug
                : options.request.quiet ? LogLevel::kQuiet
                                        : LogLevel::kWarning);
  if (options.repo.empty()) {
    return invalid_input(
        "which model? mlx-flash pull org/name, as on huggingface.co");
  }
  PullRequest request = options.request;
  FLASH_ASSIGN_OR_RETURN(request.ref,
                         hub::parse_repo(options.repo, options.revision));
  if (request.choice.file.empty()) request.choice.file = request.ref.file;
  if (!request.choice.file.empty()) {
    FLASH_RETURN_IF_ERROR(hub::check_file_name(request.choice.file));
    if (!request.choice.include.empty()) {
      return invalid_input("--file and --include exclude each other");
    }
  }
  return pull_model(request);
}

void add_pull_options(CLI::App& app, PullOptions& options) {
  const auto text = [&app](const char* flag,
                           const char* type,
                           std::string& target,
                           const char* help) {
    return add_value(
        app, flag, type, help, [&target](const std::string& value) {
          target = value;
          return value.empty() ? invalid_input("the text is empty") : Status();
        });
  };
  PullRequest& request = options.request;
  text("repo,--model,-m",
       "org/name[@revision][:file]",
       options.repo,
       "Repository of the hub");
  text("--revision", "R", options.revision, "Branch, tag or commit (main)");
  text("--file",
       "NAME",
       request.choice.file,
       "A GGUF file by its name, or by its quantisation (Q4_K_M)");
  app.add_option("--include",
                 request.choice.include,
                 "Files that fit this pattern, and no others; repeatable")
      ->type_name("GLOB")
      ->allow_extra_args(false);
  app.add_flag("--plan",
               request.plan_only,
               "Stop before the weights: say whether they would fit and how "
               "fast they would run");
  add_value(app,
            "--ram",
            "SIZE",
            "Budget to plan for (default: what is free)",
            [&request](const std::string& value) {
              return assign(parse_size_or_auto(value),
                            request.config.ram_bytes);
            });
  add_value(app,
            "--ctx",
            "N",
            "Context to plan for",
            [&request](const std::string& value) {
              return assign(parse_count(value, 1, uint64_t{1} << 31),
                            request.config.context);
            });
  add_value(app,
            "--kv-quant",
            "0|4|8",
            "KV cache to plan for",
            [&request](const std::string& value) {
              if (value != "0" && value != "4" && value != "8") {
                return invalid_input("'" + value + "' is none of: 0, 4, 8");
              }
              return assign(parse_count(value, 0, 8), request.config.kv_quant);
            });
}

}  // namespace

Result<int> pull_model(const PullRequest& request) {
  const hub::Settings settings = hub::settings_from_environment();
  if (settings.offline) return pull_offline(request, settings);
  StopSignal stop(request.quiet ? "" : kStopped);
  if (request.parent != 0) stop.watch_parent(request.parent);
  PullRun run(request, settings, stop.flag());
  auto code = run.run();
  if (stop.exit_code() != 0) {
    if (!request.quiet) write_stderr(kStopped);
    return stop.exit_code();
  }
  return code;
}

CommandFn add_pull(CLI::App& app) {
  auto options = std::make_shared<PullOptions>();
  add_pull_options(app, *options);
  PullRequest& request = options->request;
  app.add_flag("--json", request.json, "One JSON object on stdout")
      ->group("Output");
  app.add_flag("--quiet,-q", request.quiet, "No progress")->group("Output");
  app.add_flag("--debug", options->debug, "Say more on stderr")
      ->group("Output");
  // What --model adds when it runs this command.
  app.add_flag("--text-only", request.text_only)->group("");
  add_value(app,
            "--for-process",
            "PID",
            "",
            [&request](const std::string& pid) {
              request.for_command = true;
              return assign(parse_count(pid, 1, uint64_t{1} << 31),
                            request.parent);
            })
      ->group("");
  return [options] { return pull(*options); };
}

}  // namespace mlx_flash
