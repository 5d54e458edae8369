// SPDX-License-Identifier: MIT
#pragma once

// How a matrix of a safetensors model is quantised, decided as mlx-lm 0.32
// does (mlx_lm/utils.py load_model, infer_quant_config; mlx/nn/layers/
// quantized.py):
//
//  - config["quantization"] has an entry for the path: an object is its
//    setting (mode affine unless it says otherwise, whatever the top level
//    says), true takes the top level's, false leaves it unquantised;
//  - else it is quantised exactly if "<path>.scales" exists, and bits, group
//    size and mode follow from the shapes and the dtype of the scales.

#include <cstdint>
#include <optional>
#include <string>

#include "base/json.h"
#include "base/status.h"
#include "base/weight_format.h"

namespace mlx_flash {

struct Tensor;

struct QuantizationSetting {
  std::string mode;  // affine, mxfp4, mxfp8, nvfp4
  uint64_t bits = 0;
  uint64_t group_size = 0;
};

// Whether weights may be fp8 as DeepSeek V3 is published: e4m3 with a float32
// "<path>.weight_scale_inv" for each block of 128 by 128. Fails for fp8 of
// another kind, or of a model that mlx-lm reads otherwise, and says what to do.
Result<bool> fp8_blocks(const Json& config);

// Turns the older `quantization_config` of config.json (also inside
// text_config) into `quantization`, where mlx-lm does and the weights stay as
// they are; checks the top level. A method that would need weights rewritten
// (awq, gptq, bitnet, ...) stays in the config and is refused by
// listed_setting(), so that such a model can still be looked at.
Status normalize_quantization(Json& config);

// What the config says about `path`: nothing (not listed, or the model is fp8
// by blocks), a setting, or "not quantised" (mode empty).
Result<std::optional<QuantizationSetting>> listed_setting(
    const Json& config, const std::string& path);

// From the parts of a matrix of `cols` columns that the config does not list.
Result<QuantizationSetting> inferred_setting(const std::string& path,
                                             uint64_t cols,
                                             const Tensor& weight,
                                             const Tensor& scales);

// The format, if it is one that can be run.
Result<WeightFormat> setting_format(const std::string& path,
                                    const QuantizationSetting& setting,
                                    DType scale_dtype);

}  // namespace mlx_flash
