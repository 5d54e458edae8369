// SPDX-License-Identifier: MIT
#pragma once

// Options that several commands share, each declared once.

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/model_path.h"
#include "mlx_flash/config.h"
#include "mlx_flash/engine.h"
#include "mlx_flash/status.h"

namespace mlx_flash {

// Declares `flags VALUE`. `parse` gets the value as it was typed; its error
// becomes a usage error that names the flag.
CLI::Option* add_value(CLI::App& app,
                       const std::string& flags,
                       const std::string& type_name,
                       const std::string& help,
                       std::function<Status(const std::string&)> parse);

// A parser's result put into `target`.
template <typename T, typename U>
Status assign(Result<T> result, U& target) {
  if (!result.ok()) return result.status();
  target = static_cast<U>(std::move(result).value());
  return Status();
}

// --model, --file, --revision, --model-name, --quiet, --debug: every command
// that needs a model.
struct ModelOptions {
  std::string model;     // as given; empty: the default model
  std::string file;      // of a repository or folder: a GGUF file
  std::string revision;  // of a hub repository
  std::string model_name;
  bool quiet = false;
  bool debug = false;
  bool text_only = false;  // a command that needs no weights

  // The log level as asked for.
  void set_level() const;

  // What resolve() asks for.
  ModelRequest request() const;

  // The folder or file behind --model (a hub id is looked up in the hub
  // cache, downloaded where it is missing), with the log level set as asked.
  // Fails with what to do.
  Result<std::string> resolve() const;

  // What reports call the model: --model-name, else the file's or folder's
  // name without ".gguf".
  std::string name(const std::string& resolved) const;
};
void add_model_options(CLI::App& app, ModelOptions& options);

// And the options of an engine: budget, context, kernels, threads, ...
struct EngineOptions : ModelOptions {
  Config config;      // without `model`: that is resolve_config's
  std::string trace;  // path of --trace; empty: none

  // Writes the trace if one was asked for; says so if it is not whole.
  Status write_trace(const Engine& engine) const;

  // request() with what a download should be planned for.
  ModelRequest engine_request() const;

  // The configuration with its model resolved; fails as resolve() does.
  Result<Config> resolve_config() const;
};
void add_engine_options(CLI::App& app, EngineOptions& options);

void add_sampling_options(CLI::App& app, GenerateOptions& options);

struct PromptOptions {
  std::optional<std::string> text;
  std::optional<std::string> file;  // "-": stdin
  std::optional<std::string> ids;
  std::optional<std::string> positional;  // as --prompt
  std::optional<std::string> system;
  bool raw = false;
};
void add_prompt_options(CLI::App& app, PromptOptions& options);

// Only --prompt-like input that is not for a chat: text and text files, under
// the names `run` and `score` use, and a positional TEXT.
struct TextOptions {
  std::optional<std::string> text;
  std::optional<std::string> file;  // "-": stdin
  std::optional<std::string> ids;
};
void add_text_options(CLI::App& app, TextOptions& options);

}  // namespace mlx_flash
