// SPDX-License-Identifier: MIT
#include "checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <filesystem>
#include <utility>

#include "base/quote.h"
#include "checkpoint/builder.h"
#include "checkpoint/gguf_names.h"
#include "checkpoint/limits.h"
#include "checkpoint/quantization.h"

namespace mlx_flash {
namespace {

constexpr size_t kTensorsOfModelMax = size_t{2} << 20;

// Behind a matrix's path: of fp8 weights.
constexpr const char* kScaleInverse = ".weight_scale_inv";

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

Result<Checkpoint> open_folder(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(Json config, read_config(path));
  FLASH_ASSIGN_OR_RETURN(const auto files, weight_files(path));
  CheckpointBuilder builder(path);
  size_t tensors = 0;
  for (const std::string& file : files) {
    FLASH_ASSIGN_OR_RETURN(const auto source, FileSource::open(file));
    FLASH_ASSIGN_OR_RETURN(auto entries, read_safetensors_header(source));
    tensors += entries.size();
    if (tensors > kTensorsOfModelMax) {
      return invalid_input(
          fmt::format("{}: more than {} tensors", path, kTensorsOfModelMax));
    }
    builder.add(file, std::move(entries));
  }
  return builder.finish(std::move(config), false);
}

Status check_part(const GgufFile& part, size_t index, size_t count) {
  FLASH_ASSIGN_OR_RETURN(const auto claimed,
                         part.unsigned_integer("split.count"));
  FLASH_ASSIGN_OR_RETURN(const auto number, part.unsigned_integer("split.no"));
  if (claimed.value_or(0) != count || number.value_or(0) != index) {
    return invalid_input(
        fmt::format("{}: says it is part {} of {}, but its name says {} of {}",
                    part.name(),
                    number.value_or(0) + 1,
                    claimed.value_or(0),
                    index + 1,
                    count));
  }
  return {};
}

Result<Checkpoint> open_gguf(const std::string& path) {
  FLASH_ASSIGN_OR_RETURN(auto first, GgufFile::open(path));
  FLASH_ASSIGN_OR_RETURN(const auto paths, gguf_parts(path, first));
  std::vector<GgufFile> parts;
  parts.push_back(std::move(first));
  CheckpointBuilder builder(path);
  builder.add(parts.front(), path);
  size_t tensors = parts.front().tensors().size();
  for (size_t i = 1; i < paths.size(); ++i) {
    FLASH_ASSIGN_OR_RETURN(auto part, GgufFile::open(paths[i]));
    FLASH_RETURN_IF_ERROR(check_part(part, i, paths.size()));
    tensors += part.tensors().size();
    if (tensors > kTensorsOfModelMax) {
      return invalid_input(
          fmt::format("{}: more than {} tensors", path, kTensorsOfModelMax));
    }
    builder.add(part, paths[i]);
    parts.push_back(std::move(part));
  }
  FLASH_ASSIGN_OR_RETURN(const auto total,
                         parts.front().unsigned_integer("split.tensors.count"));
  if (paths.size() > 1 && total && *total != tensors) {
    return invalid_input(
        fmt::format("{}: split.tensors.count is {}, the parts have {}",
                    path,
                    *total,
                    tensors));
  }
  FLASH_ASSIGN_OR_RETURN(Json config, gguf_config(parts));
  return builder.finish(std::move(config), true);
}

// A part of a split format, checked against what the config wants.
Status check_part_shape(const Tensor& part,
                        DType dtype,
                        const std::vector<uint64_t>& wanted) {
  if (part.block_format || part.dtype != dtype) {
    return invalid_input(fmt::format("tensor {} is {}, {} is wanted",
                                     quote(part.name),
                                     dtype_name(part.dtype),
                                     dtype_name(dtype)));
  }
  if (part.shape != wanted) {
    return invalid_input(fmt::format(
        "tensor {} has the shape [{}], [{}] is wanted by the config",
        quote(part.name),
        fmt::join(part.shape, ", "),
        fmt::join(wanted, ", ")));
  }
  return {};
}

}  // namespace

uint32_t CheckpointBuilder::add_file(const std::string& file) {
  checkpoint_.files_.push_back(file);
  return static_cast<uint32_t>(checkpoint_.files_.size() - 1);
}

void CheckpointBuilder::add_unusable(std::string name, std::string_view type) {
  checkpoint_.unusable_.emplace(std::move(name), type);
}

void CheckpointBuilder::add(const std::string& file,
                            std::vector<SafetensorsEntry> entries) {
  const uint32_t index = add_file(file);
  for (SafetensorsEntry& entry : entries) {
    if (!entry.dtype) {
      add_unusable(std::move(entry.name), printable(entry.dtype_text, 40));
      continue;
    }
    Tensor tensor;
    tensor.name = std::move(entry.name);
    tensor.shape = std::move(entry.shape);
    tensor.dtype = *entry.dtype;
    if (is_float(tensor.dtype)) tensor.format = dense_format(tensor.dtype);
    tensor.range = {index, entry.offset, entry.bytes};
    checkpoint_.tensors_.push_back(std::move(tensor));
  }
}

void CheckpointBuilder::add(const GgufFile& file, const std::string& path) {
  const uint32_t index = add_file(path);
  for (const GgufTensor& from : file.tensors()) {
    std::string name = hugging_face_name(from.name);
    if (!from.format && !from.dtype) {
      add_unusable(std::move(name),
                   from.type_name == "unknown"
                       ? fmt::format("{} (unknown)", from.type)
                       : std::string(from.type_name));
      continue;
    }
    Tensor tensor;
    tensor.name = std::move(name);
    tensor.shape = from.shape;
    tensor.block_format = !from.dtype.has_value();
    tensor.dtype = from.dtype.value_or(DType::kU8);
    if (from.format) tensor.format = *from.format;
    tensor.range = {index, from.offset, from.bytes};
    checkpoint_.tensors_.push_back(std::move(tensor));
  }
}

Result<Checkpoint> CheckpointBuilder::finish(Json config, bool is_gguf) {
  checkpoint_.config_ = std::move(config);
  checkpoint_.is_gguf_ = is_gguf;
  checkpoint_.by_name_.reserve(checkpoint_.tensors_.size());
  for (size_t i = 0; i < checkpoint_.tensors_.size(); ++i) {
    const Tensor& tensor = checkpoint_.tensors_[i];
    const auto [place, fresh] = checkpoint_.by_name_.emplace(tensor.name, i);
    if (fresh && !checkpoint_.unusable_.contains(tensor.name)) continue;
    const Tensor& other = checkpoint_.tensors_[place->second];
    return invalid_input(fmt::format("{}: tensor {} twice, in {} and in {}",
                                     checkpoint_.path_,
                                     quote(tensor.name),
                                     checkpoint_.files_[other.range.file],
                                     checkpoint_.files_[tensor.range.file]));
  }
  return std::move(checkpoint_);
}

Result<Checkpoint> Checkpoint::open(const std::string& path) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind == std::filesystem::file_type::directory) return open_folder(path);
  if (kind == std::filesystem::file_type::regular) {
    if (path.ends_with(".safetensors")) {
      return invalid_input(
          fmt::format("{}: give the folder, which has config.json too", path));
    }
    return open_gguf(path);
  }
  return invalid_input(fmt::format(
      "{}: no such model: neither a folder nor a .gguf file", path));
}

uint64_t Checkpoint::weights_bytes() const {
  uint64_t bytes = 0;
  for (const Tensor& tensor : tensors_) bytes += tensor.range.bytes;
  return bytes;
}

const Tensor* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

Result<const Tensor*> Checkpoint::tensor(std::string_view name) const {
  if (const Tensor* found = find(name)) return found;
  const auto unusable = unusable_.find(std::string(name));
  if (unusable == unusable_.end()) {
    return invalid_input(
        fmt::format("{}: tensor {} is missing", path_, quote(name)));
  }
  return unsupported(
      fmt::format("{}: tensor {} has the type {}, which is not "
                  "supported",
                  path_,
                  quote(name),
                  unusable->second));
}

Result<Matrix> Checkpoint::matrix(const std::string& path,
                                  uint64_t rows,
                                  uint64_t cols) const {
  return matrix_at(path, path, {.rows = rows, .cols = cols});
}

Result<Matrix> Checkpoint::stacked_matrix(const std::string& path,
                                          uint64_t stack,
                                          uint64_t rows,
                                          uint64_t cols) const {
  return matrix_at(path, path, {stack, rows, cols});
}

std::vector<uint64_t> Checkpoint::Extent::shape(uint64_t columns) const {
  if (stack == 0) return {rows, columns};
  return {stack, rows, columns};
}

Result<Matrix> Checkpoint::matrix_at(const std::string& path,
                                     const std::string& listed_path,
                                     const Extent& extent) const {
  std::optional<QuantizationSetting> setting;
  if (!is_gguf_) {
    auto listed = listed_setting(config_, listed_path);
    if (!listed.ok()) return listed.status().at(path_);
    setting = *listed;
  }
  FLASH_ASSIGN_OR_RETURN(const Tensor* weight, tensor(path + ".weight"));
  const Tensor* scales = find(path + ".scales");
  auto matrix = weight->dtype == DType::kF8E4M3
                    ? fp8_matrix(path, extent, *weight)
                : (setting ? !setting->mode.empty() : scales != nullptr)
                    ? quantized_matrix(path, extent, *weight, setting)
                    : plain_matrix(path, extent, *weight);
  if (!matrix.ok()) {
    return matrix.status().at(files_[weight->range.file]);
  }
  return matrix;
}

Result<Matrix> Checkpoint::plain_matrix(const std::string& path,
                                        const Extent& extent,
                                        const Tensor& weight) const {
  if (!weight.block_format && !is_float(weight.dtype)) {
    return unsupported(
        fmt::format("tensor {} is {}, and there is no {}.scales beside it",
                    quote(weight.name),
                    dtype_name(weight.dtype),
                    path));
  }
  if (find(path + ".scales") != nullptr) {
    return invalid_input(fmt::format(
        "{}.scales exists, but config.json says the matrix is not quantised",
        path));
  }
  if (find(path + kScaleInverse) != nullptr) {
    return invalid_input(fmt::format("{}{} exists, but tensor {} is {}",
                                     path,
                                     kScaleInverse,
                                     quote(weight.name),
                                     dtype_name(weight.dtype)));
  }
  const std::vector<uint64_t> wanted = extent.shape(extent.cols);
  if (weight.shape != wanted) {
    return invalid_input(fmt::format(
        "tensor {} has the shape [{}], [{}] is wanted by the config",
        quote(weight.name),
        fmt::join(weight.shape, ", "),
        fmt::join(wanted, ", ")));
  }
  const uint64_t rows = extent.all_rows();
  if (rows == 0 || !format_accepts(weight.format, extent.cols)) {
    return invalid_input(fmt::format("tensor {} is empty", quote(weight.name)));
  }
  return Matrix{path, weight.format, rows, extent.cols, weight.range, {}, {}};
}

Result<Matrix> Checkpoint::fp8_matrix(const std::string& path,
                                      const Extent& extent,
                                      const Tensor& weight) const {
  FLASH_ASSIGN_OR_RETURN(const bool fp8, fp8_blocks(config_));
  if (!fp8) {
    return unsupported(fmt::format(
        "tensor {} is {}, but config.json has no quantization_config whose "
        "quant_method is 'fp8'",
        quote(weight.name),
        dtype_name(weight.dtype)));
  }
  if (extent.stack != 0) {
    return unsupported(fmt::format(
        "tensor {} is {} and stacked; fp8 experts are read one by one",
        quote(weight.name),
        dtype_name(weight.dtype)));
  }
  const uint64_t rows = extent.rows;
  const uint64_t cols = extent.cols;
  const WeightFormat format = block_format(WeightKind::kFp8);
  FLASH_RETURN_IF_ERROR(check_part_shape(weight, DType::kF8E4M3, {rows, cols}));
  if (rows == 0 || cols == 0) {
    return invalid_input(fmt::format("tensor {} is empty", quote(weight.name)));
  }
  FLASH_ASSIGN_OR_RETURN(const Tensor* scales, tensor(path + kScaleInverse));
  const auto blocks = [](uint64_t n) { return (n - 1) / kFp8Block + 1; };
  FLASH_RETURN_IF_ERROR(
      check_part_shape(*scales, DType::kF32, {blocks(rows), blocks(cols)}));
  return Matrix{path, format, rows, cols, weight.range, scales->range, {}};
}

Result<Matrix> Checkpoint::quantized_matrix(
    const std::string& path,
    const Extent& extent,
    const Tensor& weight,
    const std::optional<QuantizationSetting>& listed) const {
  if (!is_gguf_ && !config_.contains("quantization")) {
    return invalid_input(fmt::format(
        "{}.scales exists, but config.json has no quantization", path));
  }
  const uint64_t rows = extent.all_rows();
  const uint64_t cols = extent.cols;
  FLASH_ASSIGN_OR_RETURN(const Tensor* scales, tensor(path + ".scales"));
  QuantizationSetting setting;
  if (listed) {
    setting = *listed;
  } else {
    FLASH_ASSIGN_OR_RETURN(setting,
                           inferred_setting(path, cols, weight, *scales));
  }
  FLASH_ASSIGN_OR_RETURN(const WeightFormat format,
                         setting_format(path, setting, scales->dtype));
  const auto bits = checked_multiply(cols, format.bits);
  if (rows == 0 || !bits || *bits % 32 != 0 || !format_accepts(format, cols)) {
    return invalid_input(fmt::format(
        "{}: {} columns cannot be {}", path, cols, format_name(format)));
  }
  const uint64_t groups = cols / format.group_size;
  FLASH_RETURN_IF_ERROR(
      check_part_shape(weight, DType::kU32, extent.shape(*bits / 32)));
  const bool affine = format.has_biases();
  if (affine && !is_float(scales->dtype)) {
    return invalid_input(fmt::format("tensor {} is {}, a float is wanted",
                                     quote(scales->name),
                                     dtype_name(scales->dtype)));
  }
  FLASH_RETURN_IF_ERROR(check_part_shape(
      *scales, affine ? scales->dtype : DType::kU8, extent.shape(groups)));
  Matrix matrix{path, format, rows, cols, weight.range, scales->range, {}};
  if (!affine) {
    for (const char* extra : {".biases", ".global_scale"}) {
      if (find(path + extra) != nullptr) {
        return unsupported(fmt::format(
            "{}{} beside {} weights", path, extra, format_name(format)));
      }
    }
    return matrix;
  }
  FLASH_ASSIGN_OR_RETURN(const Tensor* biases, tensor(path + ".biases"));
  FLASH_RETURN_IF_ERROR(
      check_part_shape(*biases, scales->dtype, extent.shape(groups)));
  matrix.biases = biases->range;
  return matrix;
}

}  // namespace mlx_flash
