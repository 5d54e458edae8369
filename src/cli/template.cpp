// SPDX-License-Identifier: MIT

// `mlx-flash template`: messages through a chat template, exactly. Needs the
// tokenizer files of a model, or with --template no model at all.

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "cli/text_input.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace mlx_flash {
namespace {

struct TemplateOptions {
  ModelOptions model;
  std::string messages;
  std::string tools;
  std::string template_file;
  bool no_generation_prompt = false;
  ChatOptions chat;
};

// "name=text" sets a string, "name:=JSON" any value.
Result<std::pair<std::string, std::string>> parse_variable(
    const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == text.npos || equals == 0) {
    return invalid_input(
        fmt::format("'{}' is neither name=text nor name:=JSON", text));
  }
  const bool json = text[equals - 1] == ':';
  std::string name = text.substr(0, equals - (json ? 1 : 0));
  std::string value = text.substr(equals + 1);
  if (name.empty()) {
    return invalid_input(fmt::format("'{}' has no name", text));
  }
  FLASH_RETURN_IF_ERROR(check_utf8(text, name));
  if (!json) return std::pair(std::move(name), Json(value).dump());
  const auto parsed = parse_json(value);
  if (!parsed.ok()) return parsed.status().at(name);
  return std::pair(std::move(name), std::move(value));
}

// The text of a JSON file that holds a list.
Result<std::string> read_list(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(std::string text, read_text(path));
  FLASH_RETURN_IF_ERROR(check_utf8(text, path));
  const auto parsed = parse_json(text);
  if (!parsed.ok()) return parsed.status().at(path);
  if (!parsed->is_array()) {
    return invalid_input(fmt::format("{}: not a JSON list", path));
  }
  return text;
}

// Through a template of the user's own; a model, where one is named, gives its
// special tokens (bos_token, ...).
Result<std::string> render_file(const TemplateOptions& options,
                                const ChatOptions& chat,
                                const std::string& messages) {
  FLASH_ASSIGN_OR_RETURN(const std::string source,
                         read_text(options.template_file));
  FLASH_RETURN_IF_ERROR(check_utf8(source, options.template_file));
  ChatTemplate::Options render;
  render.add_generation_prompt = chat.add_generation_prompt;
  render.now = chat.now;
  if (!chat.tools_json.empty()) {
    FLASH_ASSIGN_OR_RETURN(render.tools, parse_json(chat.tools_json));
  }
  if (!options.model.model.empty()) {
    FLASH_ASSIGN_OR_RETURN(const std::string path, options.model.resolve());
    FLASH_ASSIGN_OR_RETURN(const auto text, Text::open(path));
    for (const auto& [name, value] : text->tokenizer()->special_tokens()) {
      render.variables[name] = value;
    }
  }
  for (const auto& [name, value] : chat.variables) {
    FLASH_ASSIGN_OR_RETURN(render.variables[name], parse_json(value));
  }
  FLASH_ASSIGN_OR_RETURN(const Json list, parse_json(messages));
  const auto compiled = ChatTemplate::compile(source);
  if (!compiled.ok()) return compiled.status().at(options.template_file);
  auto rendered = compiled->render(list, render);
  if (!rendered.ok()) return rendered.status().at(options.template_file);
  return rendered;
}

Result<std::string> render(const TemplateOptions& options,
                           const ChatOptions& chat,
                           const std::string& messages) {
  if (!options.template_file.empty()) {
    return render_file(options, chat, messages);
  }
  FLASH_ASSIGN_OR_RETURN(const std::string path, options.model.resolve());
  FLASH_ASSIGN_OR_RETURN(const auto text, Text::open(path));
  return text->render_chat(messages, chat);
}

Result<int> run_template(const TemplateOptions& options) {
  if (options.messages.empty()) {
    return invalid_input(
        "no messages: give --messages F.json, a list of {role, content} "
        "(-: stdin)");
  }
  FLASH_ASSIGN_OR_RETURN(const std::string messages,
                         read_list(options.messages));
  ChatOptions chat = options.chat;
  chat.add_generation_prompt = !options.no_generation_prompt;
  if (!options.tools.empty()) {
    FLASH_ASSIGN_OR_RETURN(chat.tools_json, read_list(options.tools));
  }
  FLASH_ASSIGN_OR_RETURN(const std::string text,
                         render(options, chat, messages));
  FLASH_RETURN_IF_ERROR(write_stdout(text));
  return 0;
}

}  // namespace

CommandFn add_template(CLI::App& app) {
  auto options = std::make_shared<TemplateOptions>();
  add_model_options(app, options->model);
  options->model.text_only = true;
  TemplateOptions& o = *options;
  const auto path =
      [&app](const char* flag, std::string& target, const char* help) {
        add_value(app, flag, "F", help, [&target](const std::string& text) {
          target = text;
          return text.empty() ? invalid_input("the path is empty") : Status();
        })->group("Template");
      };
  path("--messages", o.messages, "JSON list of messages; -: stdin");
  path("--tools", o.tools, "JSON list of tools");
  path("--template", o.template_file, "Jinja file instead of the model's own");
  app.add_flag("--no-generation-prompt",
               o.no_generation_prompt,
               "End after the last message")
      ->group("Template");
  app.add_option_function<std::vector<std::string>>(
         "--set",
         [&o](const std::vector<std::string>& all) {
           o.chat.variables.clear();
           for (const std::string& each : all) {
             auto variable = parse_variable(each);
             if (!variable.ok()) {
               throw CLI::ValidationError("--set", variable.status().message());
             }
             o.chat.variables.push_back(std::move(variable).value());
           }
         },
         "A variable of the template, repeatable: name=text (bos_token=<s>) "
         "or name:=JSON (enable_thinking:=false)")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false)
      ->group("Template");
  add_value(app,
            "--now",
            "2025-01-15T12:34:56",
            "The time the template sees (default: now)",
            [&o](const std::string& text) {
              o.chat.now = text;
              return Status();
            })
      ->group("Template");
  return [options] { return run_template(*options); };
}

}  // namespace mlx_flash
