// SPDX-License-Identifier: MIT
#include "checkpoint/quantization.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/quote.h"
#include "checkpoint/checkpoint.h"

namespace mlx_flash {
namespace {

struct ModeRow {
  std::string_view mode;
  uint64_t bits;                   // default, and for fp modes the only one
  uint64_t group_size;             // likewise
  std::optional<WeightKind> kind;  // fp modes
};

constexpr ModeRow kModes[] = {
    {"affine", 4, 64, std::nullopt},
    {"mxfp4", 4, 32, WeightKind::kMxfp4},
    {"mxfp8", 8, 32, WeightKind::kMxfp8},
    {"nvfp4", 4, 16, WeightKind::kNvfp4},
};

constexpr std::array<uint64_t, 6> kAffineBits = {2, 3, 4, 5, 6, 8};
constexpr std::array<uint64_t, 3> kAffineGroups = {32, 64, 128};

const ModeRow* find_mode(std::string_view mode) {
  for (const ModeRow& row : kModes) {
    if (row.mode == mode) return &row;
  }
  return nullptr;
}

template <size_t N>
bool contains(const std::array<uint64_t, N>& values, uint64_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

Status bad_field(const std::string& where, const char* field) {
  return invalid_input(
      fmt::format("config.json: {}.{} is not usable", where, field));
}

// `where`: the object's place in config.json. Absent fields take the mode's
// defaults, and an absent mode is affine.
Result<QuantizationSetting> parse_setting(const Json& json,
                                          const std::string& where) {
  QuantizationSetting setting;
  setting.mode = "affine";
  if (const auto mode = json.find("mode"); mode != json.end()) {
    if (!mode->is_string()) return bad_field(where, "mode");
    setting.mode = mode->get<std::string>();
  }
  const ModeRow* row = find_mode(setting.mode);
  if (row == nullptr) {
    return unsupported(
        fmt::format("config.json: {}.mode is {}; affine, mxfp4, mxfp8 and "
                    "nvfp4 can be used",
                    where,
                    quote(setting.mode, 40)));
  }
  const auto input = json.find("quantize_input");
  if (input != json.end() && *input != false) {
    return unsupported(fmt::format(
        "config.json: {}.quantize_input: quantised activations are not "
        "supported",
        where));
  }
  const auto number = [&](const char* key, uint64_t& value) {
    const auto found = json.find(key);
    if (found == json.end() || found->is_null()) return true;
    if (!found->is_number_unsigned()) return false;
    value = found->get<uint64_t>();
    return true;
  };
  setting.bits = row->bits;
  setting.group_size = row->group_size;
  if (!number("bits", setting.bits)) return bad_field(where, "bits");
  if (!number("group_size", setting.group_size)) {
    return bad_field(where, "group_size");
  }
  return setting;
}

std::string method_of(const Json& config) {
  const auto quantization = config.find("quantization_config");
  if (quantization == config.end() || !quantization->is_object()) return "";
  const auto method = quantization->find("quant_method");
  if (method == quantization->end()) return "";
  return method->is_string() ? method->get<std::string>() : "";
}

bool has_quantization(const Json& config) {
  const auto found = config.find("quantization");
  return found != config.end() && !found->is_null();
}

constexpr const char* kFp8ModelType = "deepseek_v3";

// Whether quantization_config has `key` with another value than `wanted`.
bool differs(const Json& config, const char* key, const Json& wanted) {
  const Json& quantization = config.at("quantization_config");
  const auto found = quantization.find(key);
  return found != quantization.end() && *found != wanted;
}

}  // namespace

Result<bool> fp8_blocks(const Json& config) {
  if (has_quantization(config) || method_of(config) != "fp8") return false;
  const auto type = config.find("model_type");
  if (type == config.end() || *type != kFp8ModelType) {
    return unsupported(fmt::format(
        "config.json: quantization_config.quant_method is 'fp8', which is read "
        "of {} models only; convert this one to an MLX format first",
        kFp8ModelType));
  }
  const Json& quantization = config.at("quantization_config");
  const auto block = quantization.find("weight_block_size");
  if (block == quantization.end() || *block != Json({kFp8Block, kFp8Block})) {
    return unsupported(fmt::format(
        "config.json: quantization_config.weight_block_size is {}; fp8 weights "
        "are read in blocks of [{}, {}] only; convert the model to an MLX "
        "format first",
        block == quantization.end() ? "missing" : quote(block->dump(), 40),
        kFp8Block,
        kFp8Block));
  }
  for (const auto& [key, wanted] :
       {std::pair{"fmt", "e4m3"}, std::pair{"activation_scheme", "dynamic"}}) {
    if (!differs(config, key, wanted)) continue;
    return unsupported(fmt::format(
        "config.json: quantization_config.{} is {}; only {} can be used; "
        "convert the model to an MLX format first",
        key,
        quote(quantization.at(key).dump(), 40),
        quote(wanted)));
  }
  return true;
}

Status normalize_quantization(Json& config) {
  if (!config.contains("quantization_config")) {
    const auto text = config.find("text_config");
    if (text != config.end() && text->is_object() &&
        text->contains("quantization_config")) {
      config["quantization_config"] = (*text)["quantization_config"];
    }
  }
  if (!has_quantization(config)) {
    const std::string method = method_of(config);
    const ModeRow* row = find_mode(method);
    // The settings that keep the bytes: every listed weight is inferred.
    if (row != nullptr && (method == "mxfp4" || method == "mxfp8")) {
      config["quantization"] = {{"group_size", row->group_size},
                                {"bits", row->bits},
                                {"mode", method}};
    }
    return {};
  }
  const Json& quantization = config["quantization"];
  if (!quantization.is_object()) {
    return invalid_input("config.json: quantization is not an object");
  }
  FLASH_ASSIGN_OR_RETURN(const auto top,
                         parse_setting(quantization, "quantization"));
  return setting_format("config.json: quantization", top, DType::kF32).status();
}

Result<std::optional<QuantizationSetting>> listed_setting(
    const Json& config, const std::string& path) {
  using Setting = std::optional<QuantizationSetting>;
  if (!has_quantization(config)) {
    const auto legacy = config.find("quantization_config");
    if (legacy == config.end() || legacy->is_null() ||
        (legacy->is_object() && legacy->empty())) {
      return Setting();
    }
    FLASH_ASSIGN_OR_RETURN(const bool fp8, fp8_blocks(config));
    if (fp8) return Setting();
    const std::string method = method_of(config);
    return unsupported(fmt::format(
        "config.json: quantization_config.quant_method is {}, which is not "
        "supported; convert the model to an MLX format first",
        method.empty() ? "missing" : quote(method, 40)));
  }
  const Json& quantization = config.at("quantization");
  const auto listed = quantization.find(path);
  if (listed == quantization.end()) return Setting();
  const std::string where = fmt::format("quantization[{}]", quote(path));
  if (listed->is_boolean()) {
    if (!listed->get<bool>()) return Setting(QuantizationSetting{});
    FLASH_ASSIGN_OR_RETURN(auto top,
                           parse_setting(quantization, "quantization"));
    return Setting(std::move(top));
  }
  if (!listed->is_object() || listed->empty()) {
    // An empty object is false to Python.
    if (listed->is_object() || listed->is_null()) {
      return Setting(QuantizationSetting{});
    }
    return invalid_input(fmt::format(
        "config.json: {} is neither an object nor true or false", where));
  }
  FLASH_ASSIGN_OR_RETURN(auto setting, parse_setting(*listed, where));
  return Setting(std::move(setting));
}

Result<QuantizationSetting> inferred_setting(const std::string& path,
                                             uint64_t cols,
                                             const Tensor& weight,
                                             const Tensor& scales) {
  const auto cannot = [&](const std::string& why) {
    return invalid_input(fmt::format(
        "{}: cannot infer the quantisation: {} (weight [{}], scales [{}], {} "
        "columns)",
        path,
        why,
        fmt::join(weight.shape, ", "),
        fmt::join(scales.shape, ", "),
        cols));
  };
  if (weight.shape.empty() || scales.shape.empty() || cols == 0 ||
      scales.shape.back() == 0) {
    return cannot("an empty shape");
  }
  const uint64_t words = weight.shape.back();
  QuantizationSetting setting;
  setting.group_size = cols / scales.shape.back();
  setting.bits = words <= cols ? words * 32 / cols : 64;
  setting.mode = "affine";
  if (scales.dtype != DType::kU8) return setting;
  for (const ModeRow& row : kModes) {
    if (row.kind && row.bits == setting.bits &&
        row.group_size == setting.group_size) {
      setting.mode = row.mode;
      return setting;
    }
  }
  return cannot(fmt::format("{} bits with groups of {} and uint8 scales",
                            setting.bits,
                            setting.group_size));
}

Result<WeightFormat> setting_format(const std::string& path,
                                    const QuantizationSetting& setting,
                                    DType scale_dtype) {
  const ModeRow* row = find_mode(setting.mode);
  if (row == nullptr) {
    return unsupported(fmt::format(
        "{}: unknown quantisation mode {}", path, quote(setting.mode, 40)));
  }
  if (row->kind) {
    if (setting.bits != row->bits || setting.group_size != row->group_size) {
      return unsupported(
          fmt::format("{}: {} has {} bits in groups of {}, not {} in {}",
                      path,
                      row->mode,
                      row->bits,
                      row->group_size,
                      setting.bits,
                      setting.group_size));
    }
    return block_format(*row->kind);
  }
  if (!contains(kAffineBits, setting.bits) ||
      !contains(kAffineGroups, setting.group_size)) {
    return unsupported(
        fmt::format("{}: affine quantisation with {} bits in groups of {}; 2, "
                    "3, 4, 5, 6, 8 "
                    "bits in groups of 32, 64, 128 can be used",
                    path,
                    setting.bits,
                    setting.group_size));
  }
  return affine_format(static_cast<int>(setting.bits),
                       static_cast<int>(setting.group_size),
                       scale_dtype);
}

}  // namespace mlx_flash
