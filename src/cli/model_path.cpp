// SPDX-License-Identifier: MIT
#include "cli/model_path.h"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <system_error>

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

fs::path hub_cache() {
  if (auto cache = environment("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (auto home = environment("HF_HOME"); !home.empty()) {
    return fs::path(home) / "hub";
  }
  if (auto cache = environment("XDG_CACHE_HOME"); !cache.empty()) {
    return fs::path(cache) / "huggingface" / "hub";
  }
  return fs::path(environment("HOME")) / ".cache" / "huggingface" / "hub";
}

// The snapshot that "main" of a hub repository points at; empty if the cache
// does not have it.
fs::path hub_snapshot(const std::string& id) {
  std::string folder = "models--" + id;
  folder.replace(folder.find('/'), 1, "--");
  const fs::path root = hub_cache() / folder;
  std::ifstream ref(root / "refs" / "main");
  std::string commit;
  if (!(ref >> commit) || commit.find('/') != commit.npos) return {};
  const fs::path snapshot = root / "snapshots" / commit;
  return is_there(snapshot) ? snapshot : fs::path();
}

bool looks_like_hub_id(const std::string& model) {
  static const std::regex kId("[A-Za-z0-9][\\w.-]*/[A-Za-z0-9][\\w.-]*");
  return std::regex_match(model, kId);
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

Result<std::string> resolve_model(const std::string& model) {
  if (model.empty()) {
    const std::string path = cache_folder() + "/" + kDefaultModel;
    if (is_there(path)) return path;
    return invalid_input(
        "no model given: use --model PATH, a model folder or a .gguf file "
        "(`make run` fetches a small default model)");
  }
  if (is_there(model)) return model;
  if (looks_like_hub_id(model)) {
    const fs::path snapshot = hub_snapshot(model);
    if (!snapshot.empty()) return snapshot.string();
    return invalid_input(fmt::format(
        "--model {0}: no such folder or file, and the hub cache {1} does not "
        "hold {0}; downloads are not available yet: fetch it with "
        "`huggingface-cli download {0}`",
        model,
        hub_cache().string()));
  }
  return invalid_input(fmt::format(
      "--model {}: no such folder or file: give a model folder, a .gguf file "
      "or a hub id org/name",
      model));
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
