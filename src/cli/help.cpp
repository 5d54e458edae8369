// SPDX-License-Identifier: MIT
#include "cli/help.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <vector>

namespace mlx_flash {
namespace {

constexpr size_t kIndent = 28;  // where descriptions begin

// What people look for first stands first.
constexpr std::string_view kGroups[] = {"Prompt",
                                        "Template",
                                        "Measurement",
                                        "Model and memory",
                                        "Sampling",
                                        "Output",
                                        "Advanced",
                                        "Options"};

// `name` on the left, `text` wrapped on the right.
std::string entry(const std::string& name,
                  const std::string& text,
                  size_t columns) {
  std::string out = "  " + name;
  size_t column = out.size();
  if (column + 2 > kIndent) {
    out += '\n';
    column = 0;
  }
  out.append(kIndent - column, ' ');
  column = kIndent;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const size_t length = end - begin;
    if (column > kIndent && column + 1 + length > columns) {
      out += '\n';
      out.append(kIndent, ' ');
      column = kIndent;
    } else if (column > kIndent) {
      out += ' ';
      ++column;
    }
    out.append(text, begin, length);
    column += length;
    begin = end + 1;
  }
  return out + '\n';
}

// "--model, -m M"
std::string option_name(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_lnames()) {
    names.push_back("--" + name);
  }
  for (const std::string& name : option.get_snames()) {
    names.push_back("-" + name);
  }
  std::string text = fmt::format("{}", fmt::join(names, ", "));
  if (option.get_items_expected_max() > 0) text += " " + option.get_type_name();
  return text;
}

}  // namespace

std::string help_text(const CLI::App& app,
                      const std::string& usage,
                      int columns) {
  const auto width = static_cast<size_t>(std::max(columns, 60));
  std::string out =
      app.get_description() + "\n\nUsage: mlx-flash " + usage + "\n";
  std::string commands;
  for (const CLI::App* sub : app.get_subcommands(nullptr)) {
    commands += entry(sub->get_name(), sub->get_description(), width);
  }
  if (!commands.empty()) out += "\nCommands\n" + commands;
  for (const std::string_view group : kGroups) {
    std::string text;
    for (const CLI::Option* option : app.get_options()) {
      if (option->get_group() != group || option->get_positional()) continue;
      text += entry(option_name(*option), option->get_description(), width);
    }
    if (!text.empty()) out += fmt::format("\n{}\n{}", group, text);
  }
  if (!app.get_footer().empty()) out += "\n" + app.get_footer() + "\n";
  return out;
}

}  // namespace mlx_flash
