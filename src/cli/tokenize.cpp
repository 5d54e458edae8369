// SPDX-License-Identifier: MIT

// `mlx-flash tokenize`: text to ids and back. Needs a model's tokenizer files
// only.

#include <fmt/format.h>

#include <iostream>
#include <limits>
#include <memory>
#include <utility>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "cli/text_input.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

struct TokenizeOptions {
  ModelOptions model;
  TextOptions text;
  bool decode = false;
  bool no_special = false;
  bool json = false;
  bool jsonl = false;
};

Result<std::vector<int32_t>> ids_of_json(const Json& value) {
  if (!value.is_array()) return invalid_input("not a JSON array of ids");
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    if (!id.is_number_integer() || id < 0 ||
        id > std::numeric_limits<int32_t>::max()) {
      return invalid_input(
          fmt::format("item {}: {} is not an id", ids.size() + 1, id.dump()));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// A decoder has no answer for an id it does not know: better an error than
// text with a hole.
Status check_known(const Text& text, const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (static_cast<size_t>(ids[i]) >= text.vocab_size()) {
      return invalid_input(
          fmt::format("id {} (item {}) is outside the vocabulary of {} tokens",
                      ids[i],
                      i + 1,
                      text.vocab_size()));
    }
  }
  return {};
}

Result<Json> convert_line(const TokenizeOptions& options,
                          const Text& text,
                          const std::string& line) {
  FLASH_ASSIGN_OR_RETURN(const Json value, parse_json(line));
  if (options.decode) {
    FLASH_ASSIGN_OR_RETURN(const auto ids, ids_of_json(value));
    FLASH_RETURN_IF_ERROR(check_known(text, ids));
    return Json(text.decode(ids, options.no_special));
  }
  if (!value.is_string()) return invalid_input("not a JSON string");
  FLASH_ASSIGN_OR_RETURN(
      auto ids,
      text.encode(value.get_ref<const std::string&>(), !options.no_special));
  return Json(std::move(ids));
}

// A line of stdin gives a line of stdout at once, so that a program can hold a
// conversation with this one through two pipes.
Result<int> convert_lines(const TokenizeOptions& options, const Text& text) {
  std::ios::sync_with_stdio(false);
  std::string line;
  for (uint64_t number = 1; std::getline(std::cin, line); ++number) {
    auto converted = convert_line(options, text, line);
    if (!converted.ok()) {
      return converted.status().at(fmt::format("stdin line {}", number));
    }
    FLASH_RETURN_IF_ERROR(write_json_line(*converted));
  }
  return 0;
}

Result<int> decode(const TokenizeOptions& options, const Text& text) {
  if (options.text.text || options.text.file) {
    return invalid_input(
        "--decode takes ids: give --ids 1,2,3 or ids on stdin");
  }
  std::string list;
  if (options.text.ids.has_value()) {
    list = *options.text.ids;
  } else if (stdin_is_terminal()) {
    return invalid_input("no ids: give --ids 1,2,3 or ids on stdin");
  } else {
    FLASH_ASSIGN_OR_RETURN(list, read_text("-"));
  }
  auto ids = parse_ids(list);
  if (!ids.ok()) {
    return ids.status().at(options.text.ids ? "--ids" : "stdin");
  }
  FLASH_RETURN_IF_ERROR(check_known(text, *ids));
  std::string decoded = text.decode(*ids, options.no_special);
  if (options.json) {
    FLASH_RETURN_IF_ERROR(write_json_line(Json{{"text", decoded}}));
    return 0;
  }
  if (stdout_is_terminal()) decoded += '\n';
  FLASH_RETURN_IF_ERROR(write_stdout(decoded));
  return 0;
}

Result<int> encode(const TokenizeOptions& options, const Text& text) {
  if (options.text.ids.has_value()) {
    return invalid_input("--ids: add --decode to turn ids into text");
  }
  FLASH_ASSIGN_OR_RETURN(const std::string input,
                         read_plain_text(options.text));
  FLASH_ASSIGN_OR_RETURN(const auto ids,
                         text.encode(input, !options.no_special));
  if (options.json) {
    FLASH_RETURN_IF_ERROR(write_json_line(Json{{"ids", ids}}));
  } else {
    FLASH_RETURN_IF_ERROR(
        write_stdout(fmt::format("{}\n", fmt::join(ids, ","))));
  }
  return 0;
}

Result<int> tokenize(const TokenizeOptions& options) {
  if (options.jsonl &&
      (options.text.text || options.text.file || options.text.ids)) {
    return invalid_input(
        "--jsonl reads its lines from stdin: leave out the "
        "text, --text-file and --ids");
  }
  FLASH_ASSIGN_OR_RETURN(const std::string path, options.model.resolve());
  FLASH_ASSIGN_OR_RETURN(const auto text, Text::open(path));
  if (options.jsonl) return convert_lines(options, *text);
  return options.decode ? decode(options, *text) : encode(options, *text);
}

}  // namespace

CommandFn add_tokenize(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  add_model_options(app, options->model);
  options->model.text_only = true;
  add_text_options(app, options->text);
  app.add_flag("--decode", options->decode, "Ids to text")->group("Prompt");
  app.add_flag("--no-special",
               options->no_special,
               "Leave out what the tokenizer would add (bos, eos); with "
               "--decode: leave out special tokens")
      ->group("Prompt");
  app.add_flag("--json", options->json, "One JSON object on stdout")
      ->group("Output");
  app.add_flag("--jsonl",
               options->jsonl,
               "Each line of stdin is a JSON string and gives a JSON array of "
               "ids; with --decode the other way round")
      ->group("Output");
  return [options] { return tokenize(*options); };
}

}  // namespace mlx_flash
