// SPDX-License-Identifier: MIT
#include "cli/model_path.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "cli/hub_model.h"
#include "hub/local.h"
#include "hub/names.h"
#include "hub/selection.h"

namespace mlx_flash {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultModel = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// The GGUF file that --file names in a folder.
Result<std::string> file_of_folder(const std::string& folder,
                                   const std::string& file) {
  FLASH_RETURN_IF_ERROR(hub::check_file_name(file));
  hub::Choice choice;
  choice.file = file;
  const auto selection = hub::select_files(hub::snapshot_files(folder), choice);
  if (!selection.ok()) return selection.status().at("--model " + folder);
  return folder + "/" + selection->entry;
}

}  // namespace

std::string cache_folder() {
  if (auto cache = environment("MLX_FLASH_CACHE"); !cache.empty()) return cache;
#if defined(__APPLE__)
  return environment("HOME") + "/Library/Caches/mlx-flash";
#else
  if (auto cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return cache + "/mlx-flash";
  }
  return environment("HOME") + "/.cache/mlx-flash";
#endif
}

bool is_hub_id(const std::string& model) {
  return !is_there(model) && !model.ends_with(".gguf") &&
         hub::looks_like_repo(model);
}

Result<std::string> resolve_model(const ModelRequest& request) {
  const std::string& model = request.model;
  if (is_hub_id(model)) return hub_model(request);
  if (!request.revision.empty()) {
    return invalid_input(
        "--revision is for a hub id: --model org/name --revision R");
  }
  if (model.empty()) {
    if (!request.file.empty()) {
      return invalid_input("--file needs a --model that it is a file of");
    }
    const std::string path = cache_folder() + "/" + kDefaultModel;
    if (is_there(path)) return path;
    return invalid_input(
        "no model given: use --model M, a model folder, a .gguf file or a hub "
        "id org/name (`make run` fetches a small default model)");
  }
  if (!is_there(model)) {
    return invalid_input(fmt::format(
        "--model {}: no such folder or file: give a model folder, a .gguf file "
        "or a hub id org/name",
        model));
  }
  std::error_code error;
  if (request.file.empty()) return model;
  if (!fs::is_directory(model, error)) {
    return invalid_input(
        fmt::format("--file {}: {} is a file already", request.file, model));
  }
  return file_of_folder(model, request.file);
}

std::string model_name_of(const std::string& path) {
  std::error_code error;
  fs::path full = fs::absolute(path, error).lexically_normal();
  if (full.filename().empty()) full = full.parent_path();
  // A hub snapshot is named by a commit; its repository says more.
  if (full.parent_path().filename() == "snapshots") {
    const std::string repository =
        full.parent_path().parent_path().filename().string();
    const size_t last = repository.rfind("--");
    if (last != repository.npos) return repository.substr(last + 2);
  }
  std::string name = full.filename().string();
  if (name.ends_with(".gguf")) name.resize(name.size() - 5);
  return name;
}

}  // namespace mlx_flash
