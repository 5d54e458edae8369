// SPDX-License-Identifier: MIT
#include "hub/selection.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>

#include "base/json.h"
#include "base/quote.h"
#include "hub/names.h"

namespace mlx_flash::hub {
namespace {

constexpr size_t kListedMax = 40;  // GGUF files in a message
constexpr uint64_t kSmallMax = uint64_t{256} << 20;
constexpr size_t kShardsMax = 10'000;

// Of the top folder, beside the weights: what mlx-lm takes, but for Python.
constexpr std::string_view kSmallPatterns[] = {
    "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"};

std::string upper(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) {
    return static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  });
  return out;
}

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return std::isdigit(static_cast<unsigned char>(c)) != 0;
  });
}

struct Part {
  std::string stem;  // without "-00001-of-00003.gguf"
  int number = 1;
  int count = 1;
};

Part part_of(const std::string& name) {
  constexpr size_t kTail = std::string_view("-00001-of-00003.gguf").size();
  Part part{name};
  if (name.size() <= kTail) return part;
  const std::string_view tail =
      std::string_view(name).substr(name.size() - kTail);
  const std::string_view number = tail.substr(1, 5);
  const std::string_view count = tail.substr(10, 5);
  if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || !all_digits(number) ||
      !all_digits(count)) {
    return part;
  }
  part.stem = name.substr(0, name.size() - kTail);
  part.number = std::stoi(std::string(number));
  part.count = std::stoi(std::string(count));
  return part;
}

bool is_gguf(const std::string& name) {
  return name.ends_with(".gguf");
}

// Vision projectors, importance matrices, draft heads: no models to run.
bool is_helper(const std::string& name) {
  const std::string file = upper(name.substr(name.rfind('/') + 1));
  return file.find("MMPROJ") != file.npos || file.find("IMATRIX") != file.npos;
}

std::string human(uint64_t bytes) {
  return bytes >= 1'000'000'000
             ? fmt::format("{:.1f} GB", static_cast<double>(bytes) / 1e9)
             : fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

std::string list_of(const std::vector<GgufGroup>& groups) {
  std::string out;
  for (size_t i = 0; i < groups.size() && i < kListedMax; ++i) {
    out += fmt::format("{}{} ({}{})",
                       i == 0 ? "" : ", ",
                       printable(groups[i].name, 200),
                       human(groups[i].bytes),
                       groups[i].parts.size() == 1
                           ? ""
                           : fmt::format(", {} parts", groups[i].parts.size()));
  }
  if (groups.size() > kListedMax) {
    out += fmt::format(" and {} more", groups.size() - kListedMax);
  }
  return out;
}

Selection of_group(const GgufGroup& group) {
  Selection selection;
  selection.weights = group.parts;
  selection.entry = group.name;
  return selection;
}

Result<Selection> usable(const GgufGroup& group) {
  if (group.whole) return of_group(group);
  return invalid_input(fmt::format(
      "{}: parts of it are missing in the repository", printable(group.name)));
}

// `wanted` as a word of its own in `name`: "Q4_K" is not in "x-Q4_K_M.gguf".
bool holds_word(const std::string& name, const std::string& wanted) {
  const std::string text = upper(name);
  for (size_t at = text.find(wanted); at != text.npos;
       at = text.find(wanted, at + 1)) {
    const size_t end = at + wanted.size();
    if ((at == 0 || !is_word(text[at - 1])) &&
        (end == text.size() || !is_word(text[end]))) {
      return true;
    }
  }
  return false;
}

Result<Selection> select_named(const std::vector<NamedSize>& files,
                               const std::string& wanted) {
  const std::vector<GgufGroup> groups = gguf_groups(files);
  std::vector<GgufGroup> matching;
  for (const GgufGroup& group : groups) {
    const bool named =
        std::find(group.parts.begin(), group.parts.end(), wanted) !=
        group.parts.end();
    if (named) return usable(group);
    if (!is_gguf(wanted) && holds_word(group.name, upper(wanted))) {
      matching.push_back(group);
    }
  }
  for (const NamedSize& file : files) {
    if (file.name != wanted) continue;
    Selection selection;  // whatever it is, it was asked for
    selection.weights = {wanted};
    selection.entry = wanted;
    return selection;
  }
  if (matching.size() == 1) return usable(matching.front());
  if (groups.empty()) {
    return invalid_input(fmt::format(
        "there is no file {} in it, and no GGUF file at all", quote(wanted)));
  }
  if (matching.empty()) {
    return invalid_input(fmt::format("there is no file {} in it; there are {}",
                                     quote(wanted),
                                     list_of(groups)));
  }
  return invalid_input(
      fmt::format("{} fits several files: {}; give the whole "
                  "name after --file",
                  quote(wanted),
                  list_of(matching)));
}

bool matches_any(const std::vector<std::string>& patterns,
                 const std::string& name) {
  return std::any_of(
      patterns.begin(), patterns.end(), [&](const std::string& pattern) {
        return glob_matches(pattern, name);
      });
}

Result<Selection> select_included(const std::vector<NamedSize>& files,
                                  const std::vector<std::string>& patterns) {
  Selection selection;
  std::vector<NamedSize> taken;
  for (const NamedSize& file : files) {
    if (!matches_any(patterns, file.name)) continue;
    taken.push_back(file);
    const bool small = file.bytes <= kSmallMax && !is_gguf(file.name) &&
                       !file.name.ends_with(".safetensors");
    (small ? selection.first : selection.weights).push_back(file.name);
  }
  if (taken.empty()) {
    return invalid_input(
        fmt::format("no file of it fits --include {}", quote(patterns[0])));
  }
  const auto groups = gguf_groups(taken);
  const bool safetensors =
      std::any_of(taken.begin(), taken.end(), [](const NamedSize& file) {
        return file.name.ends_with(".safetensors");
      });
  if (groups.size() == 1 && !safetensors) selection.entry = groups[0].name;
  return selection;
}

bool is_model_safetensors(const std::string& name) {
  return name.find('/') == name.npos && name.starts_with("model") &&
         name.ends_with(".safetensors");
}

bool is_small_file(const std::string& name) {
  return name.find('/') == name.npos &&
         std::any_of(std::begin(kSmallPatterns),
                     std::end(kSmallPatterns),
                     [&](std::string_view pattern) {
                       return glob_matches(pattern, name);
                     });
}

}  // namespace

std::vector<GgufGroup> gguf_groups(const std::vector<NamedSize>& files) {
  std::map<std::pair<std::string, int>, std::map<int, NamedSize>> by_stem;
  for (const NamedSize& file : files) {
    if (!is_gguf(file.name) || is_helper(file.name)) continue;
    const Part part = part_of(file.name);
    by_stem[{part.stem, part.count}][part.number] = file;
  }
  std::vector<GgufGroup> groups;
  for (const auto& [stem, parts] : by_stem) {
    GgufGroup group;
    group.name = parts.begin()->second.name;
    for (const auto& [number, file] : parts) {
      group.parts.push_back(file.name);
      group.bytes += file.bytes;
    }
    group.whole = parts.begin()->first == 1 &&
                  parts.rbegin()->first == stem.second &&
                  parts.size() == static_cast<size_t>(stem.second);
    groups.push_back(std::move(group));
  }
  return groups;
}

std::string gguf_label(std::string_view name) {
  std::string text = upper(name.substr(name.rfind('/') + 1));
  if (text.ends_with(".GGUF")) text.resize(text.size() - 5);
  std::string label;
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && is_word(text[end])) ++end;
    const std::string word = text.substr(i, end - i);
    const bool block =
        (word.size() >= 2 && word[0] == 'Q' && std::isdigit(word[1]) != 0) ||
        (word.size() >= 3 && word.starts_with("IQ")) ||
        (word.size() >= 3 && word.starts_with("TQ")) || word == "MXFP4";
    if (block || word == "F16" || word == "BF16" || word == "F32") label = word;
    i = end + 1;
  }
  return label;
}

Result<std::set<std::string>> parse_index(std::string_view text) {
  FLASH_ASSIGN_OR_RETURN(const Json json, parse_json(text));
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (!json.is_object() || map == json.end() || !map->is_object() ||
      map->empty()) {
    return invalid_input("there is no weight_map in it");
  }
  std::set<std::string> shards;
  for (const auto& file : *map) {
    if (!file.is_string()) return invalid_input("a shard's name is no text");
    const std::string name = file.get<std::string>();
    FLASH_RETURN_IF_ERROR(check_file_name(name));
    shards.insert(name);
    if (shards.size() > kShardsMax) return invalid_input("too many shards");
  }
  return shards;
}

Status apply_index(const std::set<std::string>& shards,
                   const std::vector<NamedSize>& files,
                   Selection& selection) {
  for (const std::string& shard : shards) {
    const bool there =
        std::any_of(files.begin(), files.end(), [&](const NamedSize& file) {
          return file.name == shard;
        });
    if (!there) {
      return invalid_input(fmt::format(
          "{} names {}, which the repository does not have: it is incomplete",
          kIndexFile,
          quote(shard)));
    }
  }
  selection.weights.assign(shards.begin(), shards.end());
  return Status();
}

Result<Selection> select_files(const std::vector<NamedSize>& files,
                               const Choice& choice) {
  if (!choice.include.empty()) return select_included(files, choice.include);
  if (!choice.file.empty()) return select_named(files, choice.file);
  Selection selection;
  for (const NamedSize& file : files) {
    if (is_model_safetensors(file.name)) selection.weights.push_back(file.name);
    if (!is_small_file(file.name) || file.bytes > kSmallMax) continue;
    selection.indexed = selection.indexed || file.name == kIndexFile;
    selection.first.push_back(file.name);
  }
  if (!selection.weights.empty() || selection.indexed) return selection;
  const std::vector<GgufGroup> groups = gguf_groups(files);
  if (groups.size() == 1) return usable(groups.front());
  if (groups.empty()) {
    return invalid_input(
        "it has no model*.safetensors and no .gguf file: nothing that can be "
        "run (mlx-community has converted models)");
  }
  return invalid_input(fmt::format(
      "it has {} GGUF files: choose one by --file NAME or its quantisation "
      "(--file {}): {}",
      groups.size(),
      gguf_label(groups[0].name).empty() ? groups[0].name
                                         : gguf_label(groups[0].name),
      list_of(groups)));
}

}  // namespace mlx_flash::hub
