// SPDX-License-Identifier: MIT
#include "cli/main_command.h"

#include <fmt/format.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/help.h"

namespace mlx_flash {
namespace {

struct CommandRow {
  const char* name;
  const char* usage;  // after the name
  const char* summary;
  const char* footer;  // of its --help
  CommandFn (*add)(CLI::App&);
};

constexpr CommandRow kCommands[] = {
    {"run",
     "[options] [PROMPT|-]",
     "Answers one prompt, streamed as it is decoded",
     "Example: mlx-flash run -m model.gguf --ram 64MB -p \"Why is the sky "
     "blue?\"",
     add_run},
    {"chat",
     "[options]",
     "A conversation: history, editing, the model's template",
     "Where stdin is not a terminal each of its lines is a message.",
     add_chat},
    {"score",
     "[options] [TEXT|-]",
     "Log-likelihood and perplexity of a given text",
     "Example: mlx-flash score -m model.gguf --text-file book.txt --json",
     add_score},
    {"plan",
     "[options]",
     "What a memory budget would be spent on; runs nothing",
     "Example: mlx-flash plan -m ~/models/Qwen3-32B-4bit --ram 8",
     add_plan},
    {"bench",
     "[options]",
     "Measures prefill and decode under a budget",
     "Example: mlx-flash bench -m model.gguf --ram 64MB --json",
     add_bench},
    {"tokenize",
     "[options] [TEXT|-]",
     "Text to token ids and back",
     "Needs only the tokenizer files of a model folder.\n"
     "Example: mlx-flash tokenize -m model --decode --ids 1,2,3",
     add_tokenize},
    {"template",
     "--messages F.json [options]",
     "Messages through a chat template, exactly",
     "Example: mlx-flash template --template chat.jinja --messages m.json "
     "--set bos_token=\"<s>\"",
     add_template},
    {"inspect",
     "[options]",
     "Architecture, tensors, quantisation, bytes",
     "Reads headers only, no weights.",
     add_inspect},
    {"pull",
     "[options] org/name[@revision][:file]",
     "Downloads a model from the hub, resumable and verified",
     "Into the cache that Python's huggingface_hub uses too; HF_TOKEN, "
     "HF_HOME, "
     "HF_ENDPOINT\nand proxies are honoured. --model org/name does the same "
     "where it is needed.\n"
     "Example: mlx-flash pull mlx-community/Llama-3.2-1B-Instruct-4bit --plan "
     "--ram 2",
     add_pull},
    {"models",
     "[options]",
     "What the hub cache holds",
     "Example: mlx-flash models --json",
     add_models},
    {"rm",
     "[options] org/name[@revision][:file]",
     "Removes a model from the hub cache",
     "Files that another revision shares stay.\n"
     "Example: mlx-flash rm mlx-community/Llama-3.2-1B-Instruct-4bit --yes",
     add_rm},
};

// Promised, not there yet: better a clear answer than "unknown".
constexpr std::string_view kLaterCommands[] = {
    "serve", "convert", "monitor", "doctor"};
constexpr std::string_view kLaterOptions[] = {"--modelfile"};

constexpr const char* kExamples =
    "Examples:\n"
    "  mlx-flash --model model.gguf --ram 64MB --prompt \"Why is the sky "
    "blue?\"\n"
    "  mlx-flash chat --model ~/models/Qwen3-32B-4bit --ram 8\n"
    "  mlx-flash plan --model ~/models/Qwen3-32B-4bit --ram 8\n"
    "Without a command: `run` where a prompt is given or stdin is not a "
    "terminal,\nelse `chat`. `mlx-flash COMMAND --help` says more.";

bool is_command(std::string_view word) {
  return std::any_of(std::begin(kCommands),
                     std::end(kCommands),
                     [&](const CommandRow& row) { return word == row.name; });
}

bool is_later_command(std::string_view word) {
  return std::find(std::begin(kLaterCommands),
                   std::end(kLaterCommands),
                   word) != std::end(kLaterCommands);
}

// Flags that stand alone; every other option takes the next word.
bool takes_value(std::string_view flag) {
  constexpr std::string_view kAlone[] = {"--json",
                                         "--warm-up",
                                         "--disk",
                                         "--stats",
                                         "--quiet",
                                         "-q",
                                         "--debug",
                                         "--raw",
                                         "--ignore-eos",
                                         "--jsonl",
                                         "--decode",
                                         "--no-special",
                                         "--no-generation-prompt",
                                         "--plan",
                                         "--yes",
                                         "-y"};
  return flag.find('=') == flag.npos &&
         std::find(std::begin(kAlone), std::end(kAlone), flag) ==
             std::end(kAlone);
}

bool gives_prompt(std::string_view word) {
  for (const std::string_view flag :
       {"--prompt", "-p", "--prompt-file", "-f", "--prompt-ids"}) {
    if (word == flag) return true;
    if (word.starts_with(flag) && word.substr(flag.size()).starts_with('=')) {
      return true;
    }
  }
  return word == "-";
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row.back();
}

// The closest of `known`, if it is close enough to be a slip of the fingers.
std::string suggestion(std::string_view word,
                       const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = 3;
  for (const std::string& each : known) {
    const size_t distance = edit_distance(word, each);
    if (distance < best_distance && distance < word.size()) {
      best = each;
      best_distance = distance;
    }
  }
  return best.empty() ? best : fmt::format(": did you mean {}?", best);
}

Status unknown_command(const std::string& word) {
  if (is_later_command(word)) {
    return unsupported(fmt::format(
        "the command '{}' is not available yet in this version", word));
  }
  std::vector<std::string> names;
  for (const CommandRow& row : kCommands) names.emplace_back(row.name);
  std::string hint = suggestion(word, names);
  if (hint.empty()) {
    hint = fmt::format(": commands are {}; a prompt goes after --prompt",
                       fmt::join(names, ", "));
  }
  return invalid_input(fmt::format("unknown command '{}'{}", word, hint));
}

Status unknown_option(const CLI::App& app, const std::string& text) {
  const std::string flag = text.substr(0, text.find('='));
  if (std::find(std::begin(kLaterOptions), std::end(kLaterOptions), flag) !=
      std::end(kLaterOptions)) {
    return unsupported(fmt::format(
        "the option {} is not available yet in this version", flag));
  }
  if (!flag.starts_with('-')) {
    return invalid_input(
        fmt::format("'{}' is not expected here: see mlx-flash {} --help",
                    text,
                    app.get_name()));
  }
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  std::string hint = suggestion(flag, names);
  if (hint.empty()) {
    hint = fmt::format(": see mlx-flash {} --help", app.get_name());
  }
  return invalid_input(fmt::format("unknown option {}{}", flag, hint));
}

// CLI11's error in our words.
Status usage_error(const CLI::App& app, const CLI::ParseError& error) {
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    const auto extras = app.remaining();
    if (!extras.empty()) return unknown_option(app, extras.front());
  }
  std::string message = error.what();
  if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) != nullptr) {
    const std::string flag = message.substr(0, message.find(':'));
    message = fmt::format("{}: a value is missing: see mlx-flash {} --help",
                          flag,
                          app.get_name());
  }
  return invalid_input(message);
}

class MainApp {
 public:
  MainApp() : app_("Runs language models larger than memory.", "mlx-flash") {
    app_.footer(kExamples);
    app_.add_flag("--version", version_, "Says the version");
    for (const CommandRow& row : kCommands) {
      CLI::App* sub = app_.add_subcommand(row.name, row.summary);
      sub->footer(row.footer);
      sub->allow_extras();  // found and named by usage_error
      commands_.emplace_back(sub, row.add(*sub));
    }
    app_.allow_extras();
  }

  Result<int> run(std::vector<std::string> args) {
    // CLI11 takes them last first.
    std::reverse(args.begin(), args.end());
    const CLI::App* parsed = &app_;
    try {
      app_.parse(std::move(args));
    } catch (const CLI::CallForHelp&) {
      for (const auto& [sub, fn] : commands_) {
        if (sub->parsed()) parsed = sub;
      }
      return print_help(*parsed);
    } catch (const CLI::ParseError& error) {
      for (const auto& [sub, fn] : commands_) {
        if (sub->parsed()) parsed = sub;
      }
      return usage_error(*parsed, error);
    }
    if (version_) return print_version();
    for (const auto& [sub, fn] : commands_) {
      if (!sub->parsed()) continue;
      const auto extras = sub->remaining();
      if (!extras.empty()) return unknown_option(*sub, extras.front());
      return fn();
    }
    const auto extras = app_.remaining();
    if (extras.empty()) return invalid_input("no command: see --help");
    return extras.front().starts_with('-')
               ? unknown_option(app_, extras.front())
               : unknown_command(extras.front());
  }

 private:
  static Result<int> print_help(const CLI::App& app) {
    std::string usage = "[COMMAND] [options]";
    for (const CommandRow& row : kCommands) {
      if (app.get_name() == row.name) {
        usage = fmt::format("{} {}", row.name, row.usage);
      }
    }
    FLASH_RETURN_IF_ERROR(write_stdout(help_text(app, usage)));
    return 0;
  }

  static Result<int> print_version() {
    FLASH_RETURN_IF_ERROR(
        write_stdout(fmt::format("mlx-flash {} (built with MLX {})\n",
                                 FLASH_VERSION,
                                 FLASH_MLX_VERSION)));
    return 0;
  }

  CLI::App app_;
  bool version_ = false;
  std::vector<std::pair<CLI::App*, CommandFn>> commands_;
};

}  // namespace

std::vector<std::string> with_command(std::vector<std::string> args,
                                      bool stdin_terminal) {
  bool prompt = false;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string word = args[i];
    if (gives_prompt(word)) prompt = true;
    if (word == "--help" || word == "-h" || word == "--version") {
      if (i == 0) return args;
      continue;
    }
    if (word.starts_with('-') && word != "-") {
      if (takes_value(word)) ++i;
      continue;
    }
    if (word == "-") continue;
    // Options before the command go behind it; any other word is a mistake
    // that the parser reports.
    if (is_command(word)) {
      args.erase(args.begin() + static_cast<std::ptrdiff_t>(i));
      args.insert(args.begin(), word);
    } else {
      std::rotate(args.begin(),
                  args.begin() + static_cast<std::ptrdiff_t>(i),
                  args.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    }
    return args;
  }
  args.insert(args.begin(), prompt || !stdin_terminal ? "run" : "chat");
  return args;
}

int main_command(std::vector<std::string> args) {
  // A closed pipe is an error of the write, not the end of the process.
  ::signal(SIGPIPE, SIG_IGN);
  // `help COMMAND` is what `COMMAND --help` is.
  if (!args.empty() && args.front() == "help") {
    std::rotate(args.begin(), args.begin() + 1, args.end());
    args.back() = "--help";
  }
  MainApp app;
  const auto code = app.run(with_command(std::move(args), stdin_is_terminal()));
  if (code.ok()) return *code;
  print_error(code.status());
  return exit_code(code.status());
}

}  // namespace mlx_flash
