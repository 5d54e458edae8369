// SPDX-License-Identifier: MIT
#pragma once

// Which files of a repository a model needs. Pure functions over names and
// sizes, so that they serve the hub's listing and the cache's alike.

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace mlx_flash::hub {

struct NamedSize {
  std::string name;
  uint64_t bytes = 0;
};

// What the user asked for.
struct Choice {
  std::string file;  // a file's name, or a quantisation ("Q4_K_M"); may be ""
  std::vector<std::string> include;  // patterns; with them, nothing else
};

struct Selection {
  std::vector<std::string> first;    // config, index, tokenizer: small
  std::vector<std::string> weights;  // safetensors, or the parts of one GGUF
  // What to give to a loader: "" is the folder, else a GGUF file's name (the
  // first of its parts).
  std::string entry;
  bool indexed = false;  // the index among `first` says which are the weights
};

// Fails with the GGUF files there are where one must be chosen, and where there
// is nothing that can be run.
Result<Selection> select_files(const std::vector<NamedSize>& files,
                               const Choice& choice);

// One GGUF model: its parts in order.
struct GgufGroup {
  std::string name;  // of the first part
  std::vector<std::string> parts;
  uint64_t bytes = 0;
  bool whole = true;  // no part is missing
};

// In order of names; multi-modal projectors and other helpers left out.
std::vector<GgufGroup> gguf_groups(const std::vector<NamedSize>& files);

// "Q4_K_M", "IQ2_XXS", "BF16": the last such word of the name in capitals;
// empty if there is none.
std::string gguf_label(std::string_view name);

// The shards an index names; fails if it is none or leads out of its folder.
Result<std::set<std::string>> parse_index(std::string_view json);

inline constexpr const char* kIndexFile = "model.safetensors.index.json";

// Keeps of selection.weights what the index names. Fails if the repository
// lacks one of them.
Status apply_index(const std::set<std::string>& shards,
                   const std::vector<NamedSize>& files,
                   Selection& selection);

}  // namespace mlx_flash::hub
