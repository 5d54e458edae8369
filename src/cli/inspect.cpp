// SPDX-License-Identifier: MIT

// `mlx-flash inspect`: what is in a model's files. Reads headers only.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/options.h"

namespace mlx_flash {
namespace {

struct InspectOptions {
  ModelOptions model;
  bool json = false;
};

// How the values of a tensor are stored: a block format or a plain type.
std::string storage_name(const Tensor& tensor) {
  return tensor.block_format ? format_name(tensor.format)
                             : std::string(dtype_name(tensor.dtype));
}

std::string file_name(const Checkpoint& checkpoint, const Tensor& tensor) {
  return std::filesystem::path(checkpoint.files()[tensor.range.file])
      .filename()
      .string();
}

std::string string_at(const Json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_string() ? found->get<std::string>()
                                                     : std::string("unknown");
}

struct Share {
  uint64_t tensors = 0;
  uint64_t bytes = 0;
};

// By storage, the largest share first.
std::vector<std::pair<std::string, Share>> storage_shares(
    const Checkpoint& checkpoint) {
  std::map<std::string, Share> by_name;
  for (const Tensor& tensor : checkpoint.tensors()) {
    Share& share = by_name[storage_name(tensor)];
    ++share.tensors;
    share.bytes += tensor.range.bytes;
  }
  std::vector<std::pair<std::string, Share>> shares(by_name.begin(),
                                                    by_name.end());
  std::stable_sort(
      shares.begin(), shares.end(), [](const auto& a, const auto& b) {
        return a.second.bytes > b.second.bytes;
      });
  return shares;
}

// The settings of MLX or Hugging Face that say how weights are quantised;
// null where the config has none.
Json quantization_of(const Json& config) {
  for (const char* key : {"quantization", "quantization_config"}) {
    const auto found = config.find(key);
    if (found != config.end()) return *found;
  }
  return nullptr;
}

Json inspect_json(const Checkpoint& checkpoint, const std::string& name) {
  Json tensors = Json::array();
  for (const Tensor& tensor : checkpoint.tensors()) {
    tensors.push_back(Json{{"name", tensor.name},
                           {"dtype", storage_name(tensor)},
                           {"shape", tensor.shape},
                           {"bytes", tensor.range.bytes},
                           {"file", file_name(checkpoint, tensor)},
                           {"offset", tensor.range.offset}});
  }
  Json formats = Json::object();
  for (const auto& [storage, share] : storage_shares(checkpoint)) {
    formats[storage] = {{"tensors", share.tensors}, {"bytes", share.bytes}};
  }
  return Json{{"model", name},
              {"architecture", string_at(checkpoint.config(), "model_type")},
              {"container", checkpoint.is_gguf() ? "gguf" : "safetensors"},
              {"files", checkpoint.files()},
              {"weights_bytes", checkpoint.weights_bytes()},
              {"tensor_count", checkpoint.tensors().size()},
              {"formats", std::move(formats)},
              {"quantization", quantization_of(checkpoint.config())},
              {"config", checkpoint.config()},
              {"tensors", std::move(tensors)}};
}

// The hyper-parameters most readers look for, in this order, where present.
constexpr const char* kShownKeys[] = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
    "sliding_window",
    "rope_theta",
    "tie_word_embeddings",
};

std::string inspect_table(const Checkpoint& checkpoint,
                          const std::string& name) {
  std::string out =
      fmt::format("{}: {}, {}, {} in {} tensors, {} file{}\n",
                  one_line(name),
                  one_line(string_at(checkpoint.config(), "model_type")),
                  checkpoint.is_gguf() ? "GGUF" : "safetensors",
                  format_bytes(static_cast<double>(checkpoint.weights_bytes())),
                  checkpoint.tensors().size(),
                  checkpoint.files().size(),
                  checkpoint.files().size() == 1 ? "" : "s");
  for (const char* key : kShownKeys) {
    const auto found = checkpoint.config().find(key);
    if (found == checkpoint.config().end() || found->is_structured()) continue;
    out += fmt::format("  {:<26}{}\n", key, one_line(found->dump()));
  }
  out += "storage\n";
  for (const auto& [storage, share] : storage_shares(checkpoint)) {
    out += fmt::format("  {:<26}{} in {} tensors\n",
                       storage,
                       format_bytes(static_cast<double>(share.bytes)),
                       share.tensors);
  }
  size_t width = 0;
  for (const Tensor& tensor : checkpoint.tensors()) {
    width = std::max(width, tensor.name.size());
  }
  width = std::min<size_t>(width, 64);
  out += "tensors\n";
  for (const Tensor& tensor : checkpoint.tensors()) {
    out += fmt::format("  {:<{}}  {:<9} {:>16}  {:>9}  {}\n",
                       one_line(tensor.name),
                       width,
                       storage_name(tensor),
                       fmt::format("[{}]", fmt::join(tensor.shape, ", ")),
                       format_bytes(static_cast<double>(tensor.range.bytes)),
                       one_line(file_name(checkpoint, tensor)));
  }
  return out;
}

Result<int> inspect(const InspectOptions& options) {
  FLASH_ASSIGN_OR_RETURN(const std::string path, options.model.resolve());
  FLASH_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(path));
  const std::string name = options.model.name(path);
  if (options.json) {
    FLASH_RETURN_IF_ERROR(write_json_line(inspect_json(checkpoint, name)));
  } else {
    FLASH_RETURN_IF_ERROR(write_stdout(inspect_table(checkpoint, name)));
  }
  return 0;
}

}  // namespace

CommandFn add_inspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  add_model_options(app, options->model);
  app.add_flag("--json", options->json, "One JSON object on stdout")
      ->group("Output");
  return [options] { return inspect(*options); };
}

}  // namespace mlx_flash
