// SPDX-License-Identifier: MIT
#include "cli/options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "base/log.h"
#include "base/size.h"
#include "cli/console.h"
#include "cli/model_path.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

constexpr uint64_t kAnyCount = std::numeric_limits<uint64_t>::max();
// 2.6 MB; a token of SmolLM2 (135M) in 64 MB leaves about 500.
constexpr uint32_t kTraceEvents = 1 << 16;
constexpr uint64_t kTokensMax = uint64_t{1} << 31;

// Options are grouped in --help by what they are about.
constexpr const char* kModelGroup = "Model and memory";
constexpr const char* kPromptGroup = "Prompt";
constexpr const char* kSamplingGroup = "Sampling";
constexpr const char* kAdvancedGroup = "Advanced";
constexpr const char* kOutputGroup = "Output";

Result<int> parse_kv_quant(const std::string& text) {
  if (text == "0" || text == "4" || text == "8") return text[0] - '0';
  return invalid_input("'" + text + "' is none of: 0, 4, 8");
}

// Better said before the answer than after it. Creates nothing.
Status check_writable(const std::string& path, const char* flag) {
  std::error_code ignored;
  const bool there = std::filesystem::exists(path, ignored);
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (folder.empty()) folder = ".";
  if (there && std::filesystem::is_directory(path, ignored)) {
    return invalid_input(fmt::format("{}: {} is a folder", flag, path));
  }
  if (::access(there ? path.c_str() : folder.c_str(), W_OK) != 0) {
    return invalid_input(fmt::format(
        "{}: {} cannot be written: {}", flag, path, std::strerror(errno)));
  }
  return Status();
}

// A parser that keeps the text as it is.
std::function<Status(const std::string&)> keep(
    std::optional<std::string>& target) {
  return [&target](const std::string& text) {
    target = text;
    return Status();
  };
}

// "auto" is 0.
Result<uint64_t> count_or_auto(const std::string& text, uint64_t max) {
  if (text == "auto") return uint64_t{0};
  return parse_count(text, 1, max);
}

Result<uint64_t> parse_rate(const std::string& text) {
  FLASH_ASSIGN_OR_RETURN(const uint64_t rate, parse_size(text));
  if (rate == 0)
    return invalid_input("0 bytes per second: nothing could be read");
  return rate;
}

void add_kv_options(CLI::App& app, Config& config) {
  add_value(app,
            "--kv-type",
            "f32|f16|bf16",
            "Type of the KV cache (default: f16 in fast, the model's in stock)",
            [&config](const std::string& text) {
              return assign(parse_kv_type(text), config.kv_type);
            })
      ->group(kAdvancedGroup);
  add_value(app,
            "--kv-quant",
            "0|4|8",
            "Bits of the KV cache beyond the newest 128 tokens, in fast; 0: "
            "full precision (default)",
            [&config](const std::string& text) {
              return assign(parse_kv_quant(text), config.kv_quant);
            })
      ->group(kAdvancedGroup);
  const auto size = [&](const char* flag, uint64_t& to, const char* help) {
    add_value(app, flag, "SIZE", help, [&to](const std::string& text) {
      return assign(parse_size_or_auto(text), to);
    })->group(kAdvancedGroup);
  };
  size("--kv-ram",
       config.kv_ram_bytes,
       "Memory of the KV cache in fast; beyond it it lies on disk (default: "
       "all in memory, unless --ctx does not fit)");
  size("--kv-disk-limit",
       config.kv_disk_limit,
       "Largest file of the KV cache (default: none)");
  size("--kv-reuse",
       config.kv_reuse_bytes,
       "Keeps this much of the KV cache of earlier prompts and answers for "
       "those that begin the same, in fast: in memory, or on disk with "
       "--kv-ram (default: none)");
  add_value(
      app,
      "--kv-keep",
      "N",
      "Goes on where --ctx is full, in fast: keeps the first N tokens (in "
      "whole blocks of 64) and the newest, and forgets those between "
      "(default: the answer ends)",
      [&config](const std::string& text) {
        return assign(parse_count(text, 1, UINT32_MAX), config.kv_keep_tokens);
      })
      ->group(kAdvancedGroup);
  add_value(app,
            "--kv-dir",
            "DIR",
            "Where that file is made (default: the temporary folder)",
            [&config](const std::string& text) {
              config.kv_dir = text;
              return text.empty() ? invalid_input("the path is empty")
                                  : Status();
            })
      ->group(kAdvancedGroup);
}

void add_expert_options(CLI::App& app, Config& config) {
  add_value(app,
            "--moe-top-k",
            "N",
            "Experts that a token uses, of a mixture; changes the answers "
            "(default: the model's number)",
            [&config](const std::string& text) {
              return assign(parse_count(text, 1, 4096), config.moe_top_k);
            })
      ->group(kAdvancedGroup);
  app.add_flag_callback(
         "--no-look-ahead",
         [&config] { config.look_ahead = LookAhead::kOff; },
         "Never read experts before a token is known to use them")
      ->group(kAdvancedGroup);
  config.learnt_dir = cache_folder() + "/experts";
  app.add_flag_callback(
         "--no-learn",
         [&config] { config.learnt_dir.clear(); },
         "Neither use nor keep what was learnt of a model's experts")
      ->group(kAdvancedGroup);
}

// How weights come from the disk.
void add_reading_options(CLI::App& app, Config& config) {
  add_value(app,
            "--io",
            "auto|uring|threads",
            "How weights are read",
            [&config](const std::string& text) {
              return assign(parse_io(text), config.io);
            })
      ->group(kAdvancedGroup);
  add_value(app,
            "--prefill",
            "N",
            "Prompt tokens of one forward (default: planned)",
            [&config](const std::string& text) {
              return assign(count_or_auto(text, uint64_t{1} << 20),
                            config.prefill_rows);
            })
      ->group(kAdvancedGroup);
  add_value(app,
            "--tile",
            "SIZE",
            "Largest piece of a matrix read at once (default: planned)",
            [&config](const std::string& text) {
              return assign(parse_size_or_auto(text), config.tile_bytes);
            })
      ->group(kAdvancedGroup);
  add_value(app,
            "--queue-depth",
            "N",
            "Reads under way at once (default: planned)",
            [&config](const std::string& text) {
              return assign(count_or_auto(text, 1024), config.queue_depth);
            })
      ->group(kAdvancedGroup);
  add_value(app,
            "--disk-limit",
            "SIZE",
            "Bytes per second to read from the disk, at most (default: none)",
            [&config](const std::string& text) {
              return assign(parse_rate(text), config.disk_limit_bytes_per_s);
            })
      ->group(kAdvancedGroup);
  app.add_flag("!--no-pipeline",
               config.read_ahead,
               "Read weights only when they are needed")
      ->group(kAdvancedGroup);
  app.add_flag("!--no-controller",
               config.bandwidth_controller,
               "Never pace reads for the sake of computing")
      ->group(kAdvancedGroup);
}

void add_stop_options(CLI::App& app, GenerateOptions& options) {
  app.add_option_function<std::vector<std::string>>(
         "--stop",
         [&options](const std::vector<std::string>& all) {
           for (const std::string& stop : all) {
             if (stop.empty()) {
               throw CLI::ValidationError("--stop", "the text is empty");
             }
           }
           options.stop = all;
         },
         "End the answer before this text; repeatable")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->group(kSamplingGroup);
  app.add_flag("--ignore-eos",
               options.ignore_eos,
               "Go on after the model's end-of-text token")
      ->group(kSamplingGroup);
}

}  // namespace

CLI::Option* add_value(CLI::App& app,
                       const std::string& flags,
                       const std::string& type_name,
                       const std::string& help,
                       std::function<Status(const std::string&)> parse) {
  const std::string flag = flags.substr(0, flags.find(','));
  return app
      .add_option_function<std::string>(
          flags,
          [flag, parse = std::move(parse)](const std::string& text) {
            const Status status = parse(text);
            if (!status.ok())
              throw CLI::ValidationError(flag, status.message());
          },
          help)
      ->type_name(type_name)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
}

void add_model_options(CLI::App& app, ModelOptions& options) {
  add_value(app,
            "--model,-m",
            "M",
            "Model folder (Hugging Face or MLX layout), .gguf file, or hub id "
            "org/name (downloaded if it is not there)",
            [&options](const std::string& text) {
              options.model = text;
              return text.empty() ? invalid_input("the path is empty")
                                  : Status();
            })
      ->group(kModelGroup);
  const auto part = [&app](const char* flag,
                           const char* type,
                           std::string& target,
                           const char* help) {
    add_value(app, flag, type, help, [&target](const std::string& text) {
      target = text;
      return text.empty() ? invalid_input("the text is empty") : Status();
    })->group(kModelGroup);
  };
  part("--file",
       "NAME",
       options.file,
       "Of a model's GGUF files this one: a name or a quantisation (Q4_K_M)");
  part("--revision",
       "R",
       options.revision,
       "Branch, tag or commit of a hub id (default: main)");
  add_value(app,
            "--model-name",
            "NAME",
            "What reports call the model (default: its file or folder name)",
            [&options](const std::string& text) {
              options.model_name = text;
              return Status();
            })
      ->group(kOutputGroup);
  app.add_flag("--quiet,-q", options.quiet, "No progress, no figures")
      ->group(kOutputGroup);
  app.add_flag("--debug", options.debug, "Say more on stderr")
      ->group(kOutputGroup);
}

Status EngineOptions::write_trace(const Engine& engine) const {
  if (trace.empty()) return Status();
  FLASH_ASSIGN_OR_RETURN(const uint64_t dropped, engine.write_trace(trace));
  if (dropped > 0 && !quiet) {
    write_stderr(fmt::format(
        "{}: the first {} events; {} more found no place (fewer tokens fit)\n",
        trace,
        config.trace_events,
        dropped));
  }
  return Status();
}

void add_engine_options(CLI::App& app, EngineOptions& options) {
  add_model_options(app, options);
  Config& config = options.config;
  add_value(app,
            "--trace",
            "F",
            "Write reads, waits and tiles in use to F, for ui.perfetto.dev",
            [&options](const std::string& text) {
              options.trace = text;
              options.config.trace_events = kTraceEvents;
              return text.empty() ? invalid_input("the path is empty")
                                  : Status();
            })
      ->group(kOutputGroup);
  add_value(app,
            "--ram",
            "SIZE",
            "Memory budget of the whole process: 1500MB, 1.5GiB; a bare number "
            "is in GB; auto: what is free (default)",
            [&](const std::string& text) {
              return assign(parse_size_or_auto(text), config.ram_bytes);
            })
      ->group(kModelGroup);
  add_value(app,
            "--ctx",
            "N|auto",
            "Tokens a session may hold; auto: the most the budget and the "
            "model allow (default)",
            [&](const std::string& text) {
              return assign(count_or_auto(text, kTokensMax), config.context);
            })
      ->group(kModelGroup);
  add_value(app,
            "--threads,-t",
            "N",
            "Compute threads (default: one for each core)",
            [&](const std::string& text) {
              return assign(count_or_auto(text, 1024), config.threads);
            })
      ->group(kModelGroup);
  add_value(app,
            "--kernels",
            "auto|fast|stock",
            "fast: the same bits for any budget and thread count; stock: "
            "MLX's own operations, equal to mlx-lm",
            [&config](const std::string& text) {
              return assign(parse_kernels(text), config.kernels);
            })
      ->group(kAdvancedGroup);
  add_kv_options(app, config);
  add_expert_options(app, config);
  add_reading_options(app, config);
}

void add_sampling_options(CLI::App& app, GenerateOptions& options) {
  SamplingOptions& sampling = options.sampling;
  const auto number = [&](const char* flag,
                          float& target,
                          double min,
                          double max,
                          const std::string& help) {
    add_value(app,
              flag,
              "X",
              help,
              [&target, min, max](const std::string& text) {
                return assign(parse_number(text, min, max), target);
              })
        ->group(kSamplingGroup);
  };
  add_value(app,
            "--max-tokens,-n",
            "N",
            "Tokens of the answer at most (default " +
                std::to_string(options.max_tokens) + ")",
            [&](const std::string& text) {
              return assign(parse_count(text, 1, kTokensMax),
                            options.max_tokens);
            })
      ->group(kSamplingGroup);
  number(
      "--temp",
      sampling.temperature,
      0,
      100,
      fmt::format("Temperature; 0: greedy (default {})", sampling.temperature));
  number("--top-p",
         sampling.top_p,
         0,
         1,
         fmt::format("Nucleus: share of probability kept (default {})",
                     sampling.top_p));
  add_value(app,
            "--top-k",
            "N",
            "Candidates kept; 0: all (default)",
            [&](const std::string& text) {
              return assign(parse_count(text, 0, uint64_t{1} << 30),
                            sampling.top_k);
            })
      ->group(kSamplingGroup);
  number("--min-p",
         sampling.min_p,
         0,
         1,
         "Drop candidates below this share of the best one's probability");
  number("--repeat-penalty",
         sampling.repeat_penalty,
         1e-3,
         1e6,
         "Divides the logits of recent tokens; 1: off (default)");
  add_value(app,
            "--seed",
            "N",
            "Seed of the sampler (default 0)",
            [&](const std::string& text) {
              return assign(parse_count(text, 0, kAnyCount), sampling.seed);
            })
      ->group(kSamplingGroup);
  add_stop_options(app, options);
}

void add_prompt_options(CLI::App& app, PromptOptions& options) {
  add_value(app,
            "--prompt,-p",
            "TEXT",
            "The prompt; -: read it from stdin",
            keep(options.text))
      ->group(kPromptGroup);
  add_value(app,
            "--prompt-file,-f",
            "F",
            "File that holds the prompt; -: stdin",
            keep(options.file))
      ->group(kPromptGroup);
  add_value(app,
            "--prompt-ids",
            "1,2,3",
            "The prompt as token ids, fed exactly as given",
            keep(options.ids))
      ->group(kPromptGroup);
  add_value(app,
            "--system",
            "TEXT",
            "System message of the chat template",
            keep(options.system))
      ->group(kPromptGroup);
  app.add_flag("--raw", options.raw, "Feed the text without a chat template")
      ->group(kPromptGroup);
  add_value(app,
            "prompt",
            "PROMPT",
            "The same as --prompt; -: stdin",
            keep(options.positional));
}

void add_text_options(CLI::App& app, TextOptions& options) {
  add_value(app,
            "--text,--prompt,-p",
            "TEXT",
            "The text; -: read it from stdin",
            keep(options.text))
      ->group(kPromptGroup);
  add_value(app,
            "--text-file,--prompt-file,-f",
            "F",
            "File that holds the text; -: stdin",
            keep(options.file))
      ->group(kPromptGroup);
  add_value(app, "--ids,--prompt-ids", "1,2,3", "Token ids", keep(options.ids))
      ->group(kPromptGroup);
  add_value(
      app, "text", "TEXT", "The same as --text; -: stdin", keep(options.text));
}

void ModelOptions::set_level() const {
  set_log_level(debug   ? LogLevel::kDebug
                : quiet ? LogLevel::kQuiet
                        : LogLevel::kWarning);
}

Result<std::string> ModelOptions::resolve() const {
  set_level();
  return resolve_model(request());
}

ModelRequest ModelOptions::request() const {
  ModelRequest request;
  request.model = model;
  request.file = file;
  request.revision = revision;
  request.text_only = text_only;
  request.quiet = quiet;
  request.debug = debug;
  return request;
}

ModelRequest EngineOptions::engine_request() const {
  ModelRequest all = request();
  all.ram_bytes = config.ram_bytes;
  all.context = config.context;
  all.kv_quant = config.kv_quant;
  return all;
}

std::string ModelOptions::name(const std::string& resolved) const {
  return model_name.empty() ? model_name_of(resolved) : model_name;
}

Result<Config> EngineOptions::resolve_config() const {
  if (!trace.empty()) FLASH_RETURN_IF_ERROR(check_writable(trace, "--trace"));
  set_level();
  FLASH_ASSIGN_OR_RETURN(std::string path, resolve_model(engine_request()));
  Config copy = config;
  copy.model = std::move(path);
  return copy;
}

}  // namespace mlx_flash
