// SPDX-License-Identifier: MIT

// `mlx-flash chat`: a conversation. Each turn renders the whole history through
// the model's template, keeps what the session already holds of it, and feeds
// only the rest.

#include <fmt/format.h>
#include <signal.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/conversation.h"
#include "cli/line_editor.h"
#include "cli/model_path.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/saved_session.h"
#include "cli/signals.h"
#include "cli/text_input.h"
#include "cli/values.h"
#include "cli/word_wrap.h"

namespace mlx_flash {
namespace {

struct ChatCommandOptions {
  EngineOptions engine;
  GenerateOptions generate;
  std::string system;
  std::string session;  // of --session; empty: none
};

class Chat {
 public:
  Chat(const ChatCommandOptions& options,
       std::string name,
       double load_s,
       Engine& engine)
      : options_(options),
        name_(std::move(name)),
        load_s_(load_s),
        engine_(engine),
        session_(engine.new_session()),
        signals_(SignalScope::Mode::kRepeat),
        editor_(cache_folder() + "/chat_history",
                [this](int fd) { return signals_.wait_readable(fd); }) {
    conversation_.set_system(options.system);
  }

  // Takes up and writes what --session names, if anything.
  Status take_up_session();
  Status save_session();

  // Until the input ends or the user leaves; the exit code.
  Result<int> talk();

 private:
  struct Command {
    const char* name;
    const char* argument;
    const char* help;
    Status (Chat::*act)(const std::string& argument);
  };
  static const Command kCommands[];

  void greet();
  // Nothing: the conversation is over.
  std::optional<std::string> next_message();
  Status obey(const std::string& line);

  Status answer(const std::string& message);
  Result<std::vector<int32_t>> turn_ids(const std::string& message) const;
  Result<std::string> generate(std::span<const int32_t> ids);
  void say(const std::string& text) const;  // to the person, dimmed

  Status help(const std::string&);
  Status reset(const std::string&);
  Status ram(const std::string& size);
  Status stats(const std::string&);
  Status system(const std::string& text);
  Status leave(const std::string&);

  const ChatCommandOptions& options_;
  std::string name_;
  double load_s_;
  Engine& engine_;
  std::unique_ptr<Session> session_;
  SignalScope signals_;
  LineEditor editor_;
  Conversation conversation_;
  GenerationStats last_;  // of the last answer
  bool answered_ = false;
  bool leaving_ = false;
};

const Chat::Command Chat::kCommands[] = {
    {"/help", "", "this list", &Chat::help},
    {"/reset", "", "forget the conversation", &Chat::reset},
    {"/system",
     "[TEXT|off]",
     "show, set or drop the system message",
     &Chat::system},
    {"/ram", "[SIZE]", "show or change the memory budget", &Chat::ram},
    {"/stats", "", "figures of the last answer", &Chat::stats},
    {"/exit", "", "leave (or Ctrl-D)", &Chat::leave},
};

void Chat::say(const std::string& text) const {
  if (options_.engine.quiet) return;
  const bool dim = stderr_is_terminal();
  write_stderr((dim ? "\x1b[2m" : "") + text + (dim ? "\x1b[0m\n" : "\n"));
}

void Chat::greet() {
  if (!editor_.interactive()) return;
  const PlanSummary& plan = engine_.plan();
  say(fmt::format("{} | {} weights in {} | context {} tokens",
                  one_line(name_),
                  format_bytes(static_cast<double>(plan.weights_bytes)),
                  format_bytes(static_cast<double>(plan.ram_bytes)),
                  plan.context));
  if (!engine_.text().has_chat_template()) {
    say("This model has no chat template: it continues the text you type.");
  }
  say("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.");
}

Status Chat::take_up_session() {
  FLASH_ASSIGN_OR_RETURN(const RestoredSession restored,
                         take_up(*session_, options_.session));
  if (!restored.note.empty()) {
    FLASH_RETURN_IF_ERROR(
        conversation_.restore(restored.note).at(options_.session));
  }
  if (!options_.system.empty()) conversation_.set_system(options_.system);
  if (restored.found && restored.problem.empty()) {
    say(fmt::format("The conversation in {} goes on: {} messages, {} tokens.",
                    one_line(options_.session),
                    conversation_.size(),
                    restored.cached));
  }
  return {};
}

Status Chat::save_session() {
  if (options_.session.empty()) return {};
  return session_->save(options_.session, conversation_.saved());
}

Result<int> Chat::talk() {
  greet();
  while (!leaving_) {
    auto message = next_message();
    if (!message.has_value()) break;
    if (message->empty()) continue;
    editor_.remember(*message);
    const Status status =
        message->front() == '/' ? obey(*message) : answer(*message);
    if (signals_.caught() == SIGTERM) break;
    if (!status.ok()) {
      // Somebody who types can do better next time; a script cannot.
      if (!editor_.interactive() || is_pipe_closed(status)) return status;
      print_error(status);
    }
    if (!editor_.interactive() && signals_.caught() != 0) break;
    signals_.clear();
  }
  return signals_.caught() != 0 ? signals_.exit_code() : 0;
}

std::optional<std::string> Chat::next_message() {
  MessageInput input;
  std::string line;
  bool warned = false;
  for (;;) {
    switch (editor_.read(input.open() ? ". " : "> ", line)) {
      case LineEditor::Outcome::kLine:
        if (input.add_line(line)) return input.take();
        break;
      case LineEditor::Outcome::kEnd:
        if (editor_.interactive()) write_stderr("\n");
        if (!input.open()) return std::nullopt;
        return input.take();  // the end of a file closes a block
      case LineEditor::Outcome::kInterrupted:
        if (signals_.caught() == 0) break;  // the window changed its size
        if (signals_.caught() == SIGTERM || !editor_.interactive()) {
          return std::nullopt;
        }
        signals_.clear();
        write_stderr("\n");
        if (warned) say("Ctrl-D or /exit leaves.");
        warned = true;
        input.take();
        break;
    }
  }
}

Status Chat::obey(const std::string& line) {
  const size_t space = line.find(' ');
  const std::string name = line.substr(0, space);
  std::string argument;
  if (space != line.npos) argument = line.substr(space + 1);
  for (const Command& command : kCommands) {
    if (name == command.name) return (this->*command.act)(argument);
  }
  return invalid_input(fmt::format("{} is no command: /help lists them", name));
}

Result<std::vector<int32_t>> Chat::turn_ids(const std::string& message) const {
  const Text& text = engine_.text();
  if (text.has_chat_template()) {
    return text.encode_chat(conversation_.json(), ChatOptions{});
  }
  std::vector<int32_t> ids = session_->tokens();
  FLASH_ASSIGN_OR_RETURN(const auto more, text.encode(message, ids.empty()));
  ids.insert(ids.end(), more.begin(), more.end());
  return ids;
}

Status Chat::answer(const std::string& message) {
  FLASH_RETURN_IF_ERROR(check_utf8(message, "the message"));
  conversation_.add("user", message);
  auto ids = turn_ids(message);
  Result<std::string> text = ids.ok() ? generate(*ids) : ids.status();
  if (!text.ok() || text->empty()) {
    conversation_.drop_last();
    return text.status();
  }
  conversation_.add("assistant", *text);
  // What is new of it, now: whatever ends this process loses nothing said.
  return save_session();
}

Result<std::string> Chat::generate(std::span<const int32_t> ids) {
  if (options_.engine.config.kv_keep_tokens == 0 &&
      ids.size() >= engine_.plan().context) {
    return exhausted(fmt::format(
        "the conversation has {} tokens, the context holds {}: /reset starts "
        "a new one; --ctx or --ram make room",
        ids.size(),
        engine_.plan().context));
  }
  FLASH_ASSIGN_OR_RETURN(const size_t keep, keep_prefix(*session_, ids));
  Progress progress("reading", "tokens", !options_.engine.quiet);
  GenerateOptions options = options_.generate;
  options.prefill_progress = [&progress](size_t done, size_t total) {
    progress.update(done, total);
  };
  WordWrap wrap(std::max(terminal_columns(), 20));
  signals_.watch(session_.get());
  Generation generation = session_->generate(ids.subspan(keep), options);
  std::string text;
  Status written;
  while (const auto piece = generation.next()) {
    progress.clear();
    text += piece->text;
    written = write_stdout(editor_.interactive() ? wrap.add(piece->text)
                                                 : piece->text);
    if (!written.ok()) break;
  }
  progress.clear();
  signals_.watch(nullptr);
  FLASH_RETURN_IF_ERROR(written);
  if (!text.ends_with('\n')) FLASH_RETURN_IF_ERROR(write_stdout("\n"));
  if (generation.finish_reason() == FinishReason::kError) {
    return generation.status();
  }
  last_ = generation.stats();
  answered_ = true;
  std::string figures = fmt::format("{} tokens", last_.generated_tokens);
  if (last_.decode_tok_s > 0) {
    figures += fmt::format(" | {:.1f} tok/s", last_.decode_tok_s);
  }
  figures += fmt::format(
      " | first after {} | {}/token | context {} "
      "of {}",
      format_seconds(last_.ttft_s),
      format_bytes(last_.bytes_read_per_token),
      session_->position(),
      engine_.plan().context);
  if (generation.finish_reason() == FinishReason::kInterrupted) {
    figures += " | stopped";
  } else if (generation.finish_reason() == FinishReason::kLength) {
    const bool asked = static_cast<int64_t>(last_.generated_tokens) >=
                       options_.generate.max_tokens;
    figures += asked ? " | cut at --max-tokens" : " | the context is full";
  }
  say(editor_.interactive() ? figures + "\n" : figures);
  return text;
}

Status Chat::help(const std::string&) {
  std::string text;
  for (const Command& command : kCommands) {
    text += fmt::format("  {:<20}{}\n",
                        fmt::format("{} {}", command.name, command.argument),
                        command.help);
  }
  write_stderr(text +
               "A line that ends with \\ goes on; \"\"\" opens and closes a "
               "block of lines;\na paste is taken whole. Ctrl-C stops an "
               "answer, the arrow keys bring back what was typed.\n");
  return {};
}

Status Chat::reset(const std::string&) {
  conversation_.clear();
  FLASH_RETURN_IF_ERROR(session_->truncate(0));
  say("A new conversation.");
  return {};
}

Status Chat::ram(const std::string& size) {
  if (!size.empty()) {
    FLASH_ASSIGN_OR_RETURN(const uint64_t bytes, parse_size_or_auto(size));
    FLASH_RETURN_IF_ERROR(engine_.set_ram(bytes));
  }
  const PlanSummary& plan = engine_.plan();
  const auto text = [](uint64_t n) {
    return format_bytes(static_cast<double>(n));
  };
  say(fmt::format("Budget {}: {} of {} kept in memory, {} read for each token",
                  text(plan.ram_bytes),
                  text(plan.pinned_bytes),
                  text(plan.pass_bytes),
                  text(plan.streamed_bytes)));
  return {};
}

Status Chat::stats(const std::string&) {
  const RunReport report = make_report(engine_, name_, last_, load_s_);
  write_stderr(answered_ ? stats_table(report)
                         : plan_table(report.plan, name_));
  return {};
}

Status Chat::system(const std::string& text) {
  if (!engine_.text().has_chat_template()) {
    return invalid_input(
        "the model has no chat template that could take a "
        "system message");
  }
  FLASH_RETURN_IF_ERROR(check_utf8(text, "/system"));
  if (!text.empty()) conversation_.set_system(text == "off" ? "" : text);
  say(conversation_.system().empty()
          ? "No system message."
          : "System message: " + one_line(conversation_.system()));
  return {};
}

Status Chat::leave(const std::string&) {
  leaving_ = true;
  return {};
}

Result<int> chat(const ChatCommandOptions& options) {
  FLASH_RETURN_IF_ERROR(check_utf8(options.system, "--system"));
  FLASH_ASSIGN_OR_RETURN(const Config config, options.engine.resolve_config());
  const double start_s = now_seconds();
  FLASH_ASSIGN_OR_RETURN(const auto engine, Engine::open(config));
  const double load_s = now_seconds() - start_s;
  if (!options.system.empty() && !engine->text().has_chat_template()) {
    return invalid_input(
        "--system: the model has no chat template that could take it");
  }
  Chat chat(options, options.engine.name(config.model), load_s, *engine);
  FLASH_RETURN_IF_ERROR(chat.take_up_session());
  Result<int> code = chat.talk();
  const Status saved =
      chat.save_session();  // what was said before an error, too
  if (!code.ok()) return code;
  FLASH_RETURN_IF_ERROR(saved);
  FLASH_RETURN_IF_ERROR(options.engine.write_trace(*engine));
  return *code;
}

}  // namespace

CommandFn add_chat(CLI::App& app) {
  auto options = std::make_shared<ChatCommandOptions>();
  options->generate.max_tokens = 1024;
  // Greedy conversations of small models soon repeat themselves.
  options->generate.sampling.temperature = 0.3f;
  options->generate.sampling.top_p = 0.9f;
  add_engine_options(app, options->engine);
  add_sampling_options(app, options->generate);
  add_session_option(app, options->session);
  ChatCommandOptions& o = *options;
  add_value(app,
            "--system",
            "TEXT",
            "System message of the chat template",
            [&o](const std::string& text) {
              o.system = text;
              return Status();
            })
      ->group("Prompt");
  return [options] { return chat(*options); };
}

}  // namespace mlx_flash
