// SPDX-License-Identifier: MIT
#include "hub/local.h"

#include <algorithm>
#include <filesystem>

#include "base/read_file.h"
#include "hub/api.h"

namespace mlx_flash::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kFilesMax = 50'000;
constexpr size_t kIndexBytesMax = size_t{100} << 20;

bool has(const std::vector<NamedSize>& files, const std::string& name) {
  return std::any_of(files.begin(), files.end(), [&](const NamedSize& file) {
    return file.name == name;
  });
}

bool has_tokenizer(const std::vector<NamedSize>& files) {
  return std::any_of(files.begin(), files.end(), [](const NamedSize& file) {
    return file.name.starts_with("tokenizer.") ||
           file.name.ends_with(".tiktoken") || file.name == "vocab.json";
  });
}

// "model-00001-of-00002.safetensors" is not a model.
bool has_all_parts(const std::vector<std::string>& weights) {
  constexpr std::string_view kOf = "-of-";
  constexpr std::string_view kEnd = ".safetensors";
  return std::all_of(weights.begin(), weights.end(), [&](const auto& name) {
    const size_t of = name.rfind(kOf);
    if (of == name.npos || !name.ends_with(kEnd)) return true;
    const size_t from = of + kOf.size();
    const auto count = parse_length(
        std::string_view(name).substr(from, name.size() - kEnd.size() - from));
    return !count || *count == weights.size();
  });
}

bool has_all_weights(const std::string& snapshot,
                     const std::vector<NamedSize>& files,
                     const Selection& selection) {
  if (!has(files, kIndexFile)) {
    return !selection.weights.empty() && has_all_parts(selection.weights);
  }
  const auto text =
      read_whole_file(snapshot + "/" + kIndexFile, kIndexBytesMax);
  if (!text.ok()) return false;
  const auto shards = parse_index(*text);
  return shards.ok() &&
         std::all_of(shards->begin(), shards->end(), [&](const auto& shard) {
           return has(files, shard);
         });
}

}  // namespace

std::vector<NamedSize> snapshot_files(const std::string& snapshot) {
  std::vector<NamedSize> files;
  std::error_code error;
  const fs::path root(snapshot);
  // Links to folders are not followed.
  for (fs::recursive_directory_iterator it(root, error), end;
       it != end && !error && files.size() < kFilesMax;
       it.increment(error)) {
    std::error_code ignored;
    if (!it->is_regular_file(ignored)) continue;
    const uint64_t bytes = it->file_size(ignored);
    if (ignored) continue;
    files.push_back({it->path().lexically_relative(root).string(), bytes});
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) {
    return a.name < b.name;
  });
  return files;
}

Result<std::optional<LocalModel>> find_local(const RepoCache& cache,
                                             const RepoRef& ref) {
  LocalModel model;
  model.commit = cache.commit_of(ref.revision);
  if (model.commit.empty()) return std::optional<LocalModel>();
  model.path = cache.snapshot(model.commit);
  const std::vector<NamedSize> files = snapshot_files(model.path);
  if (files.empty()) return std::optional<LocalModel>();
  Choice choice;
  choice.file = ref.file;
  const auto selection = select_files(files, choice);
  if (!selection.ok()) {
    // Several to choose from is an answer; none, or not this one, is not.
    if (ref.file.empty() && gguf_groups(files).size() > 1) {
      return selection.status();
    }
    return std::optional<LocalModel>();
  }
  if (selection->entry.empty()) {
    if (!has(files, "config.json") || !has_tokenizer(files) ||
        !has_all_weights(model.path, files, *selection)) {
      return std::optional<LocalModel>();
    }
  } else {
    model.path += "/" + selection->entry;
  }
  return std::optional<LocalModel>(model);
}

}  // namespace mlx_flash::hub
