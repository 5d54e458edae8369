// SPDX-License-Identifier: MIT
// Which files make a model, and its config.json.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <set>

#include "base/quote.h"
#include "checkpoint/builder.h"
#include "checkpoint/json_feed.h"
#include "checkpoint/quantization.h"

namespace mlx_flash {
namespace {

namespace fs = std::filesystem;

constexpr size_t kConfigBytesMax = size_t{2} << 20;
constexpr size_t kShardsMax = 10'000;
constexpr uint64_t kIndexBytesMax = 100'000'000;
constexpr const char* kIndexName = "model.safetensors.index.json";

// {"metadata": {...}, "weight_map": {"tensor": "file", ...}}. Only the set of
// files is kept: the tensors are in the files' own headers.
class IndexHandler : public nlohmann::json_sax<Json> {
 public:
  const std::set<std::string>& shards() const { return shards_; }
  bool has_map() const { return has_map_; }
  const std::string& error() const { return error_; }

  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(number_integer_t) override { return value(); }
  bool number_unsigned(number_unsigned_t) override { return value(); }
  bool number_float(number_float_t, const string_t&) override {
    return value();
  }
  bool binary(binary_t&) override { return value(); }
  bool string(string_t& text) override {
    if (!in_map_) return value();
    if (!shards_.contains(text)) {
      if (text.find('/') != std::string::npos || text.size() > 255 ||
          text.find('\0') != std::string::npos ||
          !text.ends_with(".safetensors")) {
        return fail(fmt::format("{} is not a safetensors file of this folder",
                                quote(text)));
      }
      if (shards_.size() == kShardsMax) return fail("too many shards");
      shards_.insert(std::move(text));
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (in_map_) return fail("weight_map is not an object of strings");
    in_map_ = depth_ == 1 && at_map_;
    has_map_ = has_map_ || in_map_;
    return deeper();
  }
  bool start_array(std::size_t) override {
    if (!value()) return false;
    return deeper();
  }
  bool end_object() override {
    in_map_ = false;
    --depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (depth_ == 1) at_map_ = name == "weight_map";
    return true;
  }
  bool parse_error(std::size_t,
                   const std::string& token,
                   const nlohmann::detail::exception&) override {
    return fail(fmt::format("not JSON near {}", quote(token, 40)));
  }

 private:
  bool fail(std::string what) {
    if (error_.empty()) error_ = std::move(what);
    return false;
  }
  bool value() {
    if (depth_ == 0) return fail("not an object");
    if (in_map_ || (depth_ == 1 && at_map_)) {
      return fail("weight_map is not an object of strings");
    }
    return true;
  }
  bool deeper() {
    if (++depth_ > 64) return fail("nested too deep");
    return true;
  }

  std::set<std::string> shards_;
  int depth_ = 0;
  bool at_map_ = false;  // the last key of the top level was weight_map
  bool in_map_ = false;
  bool has_map_ = false;
  std::string error_;
};

Result<std::set<std::string>> read_index(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(const auto source, FileSource::open(path));
  if (source.size() > kIndexBytesMax) {
    return invalid_input(fmt::format("{}: larger than an index can be", path));
  }
  ByteReader reader(source, 0, source.size());
  JsonFeed feed(reader);
  IndexHandler handler;
  const bool parsed =
      Json::sax_parse(FeedIterator{&feed}, FeedIterator{}, &handler);
  FLASH_RETURN_IF_ERROR(feed.error());
  if (!parsed || feed.token_too_long()) {
    return invalid_input(fmt::format("{}: byte {}: {}",
                                     path,
                                     feed.position(),
                                     feed.token_too_long()
                                         ? "a string that never ends"
                                         : handler.error().c_str()));
  }
  if (!handler.has_map() || handler.shards().empty()) {
    return invalid_input(fmt::format("{}: no weight_map in it", path));
  }
  return handler.shards();
}

// Replaces {"__float__": "Infinity"}, as transformers writes such numbers.
Status decode_tagged_floats(Json& json) {
  if (json.is_object() && json.size() == 1 && json.contains("__float__") &&
      json["__float__"].is_string()) {
    const auto tag = json["__float__"].get<std::string>();
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    if (tag == "NaN") return invalid_input("a value is NaN");
    if (tag == "Infinity") json = kInfinity;
    if (tag == "-Infinity") json = -kInfinity;
    return {};
  }
  if (!json.is_structured()) return {};
  for (auto& member : json) {
    FLASH_RETURN_IF_ERROR(decode_tagged_floats(member));
  }
  return {};
}

// Python's truth: mlx-lm takes the key only then.
bool truthy(const Json& json) {
  if (json.is_number()) return json != 0;
  if (json.is_boolean()) return json.get<bool>();
  return !json.is_null() && !json.empty();
}

bool file_exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

}  // namespace

Result<std::vector<std::string>> weight_files(const std::string& folder) {
  std::vector<std::string> files;
  const fs::path root(folder);
  const fs::path index = root / kIndexName;
  if (file_exists(index)) {
    FLASH_ASSIGN_OR_RETURN(const auto shards, read_index(index.string()));
    for (const std::string& shard : shards) {
      const fs::path path = root / shard;
      if (!file_exists(path)) {
        return invalid_input(fmt::format(
            "{}: shard {} is missing: it is named in {}; download it again",
            folder,
            quote(shard),
            kIndexName));
      }
      files.push_back(path.string());
    }
    return files;
  }
  std::error_code error;
  std::string gguf;
  for (fs::directory_iterator it(root, error), end; it != end && !error;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".gguf")) gguf = name;
    if (!name.starts_with("model") || !name.ends_with(".safetensors")) continue;
    if (files.size() == kShardsMax) {
      return invalid_input(fmt::format("{}: too many files", folder));
    }
    files.push_back(it->path().string());
  }
  if (error) {
    return io_error(
        fmt::format("{}: cannot list: {}", folder, error.message()));
  }
  if (files.empty()) {
    return invalid_input(fmt::format(
        "{}: no model*.safetensors in this folder{}",
        folder,
        gguf.empty()
            ? std::string()
            : fmt::format("; for {} give the file itself", quote(gguf))));
  }
  std::sort(files.begin(), files.end());
  return files;
}

Result<Json> read_config(const std::string& folder) {
  const std::string path = (fs::path(folder) / "config.json").string();
  if (!file_exists(path)) {
    return invalid_input(
        fmt::format("{}: no config.json in this folder: not a model", folder));
  }
  FLASH_ASSIGN_OR_RETURN(Json config, read_json_file(path, kConfigBytesMax));
  if (!config.is_object()) {
    return invalid_input(fmt::format("{}: not a JSON object", path));
  }
  const Status floats = decode_tagged_floats(config);
  if (!floats.ok()) return floats.at(path);
  const std::string generation =
      (fs::path(folder) / "generation_config.json").string();
  if (file_exists(generation)) {
    // Broken ones are passed over, as mlx-lm does.
    const auto json = read_json_file(generation, kConfigBytesMax);
    if (json.ok() && json->is_object() && json->contains("eos_token_id") &&
        truthy(json->at("eos_token_id"))) {
      config["eos_token_id"] = json->at("eos_token_id");
    }
  }
  const Status quantization = normalize_quantization(config);
  if (!quantization.ok()) return quantization.at(folder);
  return config;
}

Result<std::vector<std::string>> gguf_parts(const std::string& path,
                                            const GgufFile& first) {
  FLASH_ASSIGN_OR_RETURN(const auto count,
                         first.unsigned_integer("split.count"));
  FLASH_ASSIGN_OR_RETURN(const auto number, first.unsigned_integer("split.no"));
  if (!count || *count <= 1) return std::vector<std::string>{path};
  if (*count > kShardsMax) {
    return invalid_input(fmt::format("{}: split.count is {}", path, *count));
  }
  const std::string ending = fmt::format("-00001-of-{:05}.gguf", *count);
  if (number.value_or(0) != 0) {
    return invalid_input(
        fmt::format("{}: part {} of {} of a split model; give the first, the "
                    "one that ends in {}",
                    path,
                    *number + 1,
                    *count,
                    ending));
  }
  if (!path.ends_with(ending)) {
    return invalid_input(
        fmt::format("{}: the first of {} parts, but its name does not end in "
                    "{}: the others cannot be found",
                    path,
                    *count,
                    ending));
  }
  const std::string stem = path.substr(0, path.size() - ending.size());
  std::vector<std::string> parts = {path};
  for (uint64_t i = 2; i <= *count; ++i) {
    parts.push_back(fmt::format("{}-{:05}-of-{:05}.gguf", stem, i, *count));
    if (!file_exists(parts.back())) {
      return invalid_input(
          fmt::format("{}: part {} of {} is missing", parts.back(), i, *count));
    }
  }
  return parts;
}

}  // namespace mlx_flash
