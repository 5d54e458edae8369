// SPDX-License-Identifier: MIT

// `mlx-flash rm`: takes a model out of the hub cache.

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"
#include "hub/inventory.h"
#include "hub/settings.h"

namespace mlx_flash {
namespace {

struct RmOptions {
  std::string repo;
  std::string revision;
  std::string file;
  bool yes = false;
  bool json = false;
  bool quiet = false;
};

Result<bool> confirmed(const RmOptions& options, const std::string& question) {
  if (options.yes) return true;
  if (!stdin_is_terminal()) {
    return invalid_input(question + " nothing was removed: say --yes");
  }
  write_stderr(question + " [y/N] ");
  std::string answer;
  std::getline(std::cin, answer);
  return answer == "y" || answer == "Y" || answer == "yes";
}

Result<int> rm(const RmOptions& options) {
  if (options.repo.empty()) {
    return invalid_input("which model? mlx-flash models lists what is there");
  }
  const hub::Settings settings = hub::settings_from_environment();
  FLASH_ASSIGN_OR_RETURN(hub::RepoRef ref,
                         hub::parse_repo(options.repo, options.revision));
  if (!options.file.empty()) {
    FLASH_RETURN_IF_ERROR(hub::check_file_name(options.file));
    ref.file = options.file;
  }
  FLASH_ASSIGN_OR_RETURN(const hub::Removal removal,
                         hub::plan_removal(settings, ref, !ref.revision_given));
  const std::string bytes = format_bytes(static_cast<double>(removal.bytes));
  FLASH_ASSIGN_OR_RETURN(const bool go,
                         confirmed(options,
                                   fmt::format("remove {} ({} files, {})?",
                                               options.repo,
                                               removal.files,
                                               bytes)));
  if (!go) {
    write_stderr("nothing was removed\n");
    return 1;
  }
  FLASH_RETURN_IF_ERROR(hub::remove(removal));
  if (options.json) {
    FLASH_RETURN_IF_ERROR(write_json_line(Json{{"model", options.repo},
                                               {"files", removal.files},
                                               {"bytes", removal.bytes}}));
  } else if (!options.quiet) {
    write_stderr(fmt::format("{}: {} freed\n", options.repo, bytes));
  }
  return 0;
}

}  // namespace

CommandFn add_rm(CLI::App& app) {
  auto options = std::make_shared<RmOptions>();
  const auto text = [&app](const char* flag,
                           const char* type,
                           std::string& target,
                           const char* help) {
    add_value(app, flag, type, help, [&target](const std::string& value) {
      target = value;
      return value.empty() ? invalid_input("the text is empty") : Status();
    });
  };
  text("repo,--model,-m",
       "org/name[@revision][:file]",
       options->repo,
       "What to remove; without a revision, all of them");
  text("--revision", "R", options->revision, "Only this revision");
  text("--file", "NAME", options->file, "Only this GGUF file");
  app.add_flag("--yes,-y", options->yes, "Do not ask");
  app.add_flag("--json", options->json, "One JSON object on stdout")
      ->group("Output");
  app.add_flag("--quiet,-q", options->quiet, "Say nothing")->group("Output");
  return [options] { return rm(*options); };
}

}  // namespace mlx_flash
