// SPDX-License-Identifier: MIT
#include "nn/rope.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace mlx_flash::nn {
namespace {

mx::array scalar(double value) {
  return mx::array(static_cast<float>(value), mx::float32);
}

Result<double> number(const Json& scaling, const char* key) {
  const auto it = scaling.find(key);
  if (it == scaling.end() || !it->is_number()) {
    return invalid_input(
        fmt::format("config.json: rope_scaling.{} must be a number", key));
  }
  const double value = it->get<double>();
  if (!(value > 0) || !std::isfinite(value)) {
    return invalid_input(fmt::format(
        "config.json: rope_scaling.{} must be positive, it is {}", key, value));
  }
  return value;
}

Result<double> number_or(const Json& scaling, const char* key, double value) {
  const auto it = scaling.find(key);
  if (it == scaling.end()) return value;
  if (!it->is_number()) {
    return invalid_input(
        fmt::format("config.json: rope_scaling.{} must be a number", key));
  }
  return it->get<double>();
}

Result<std::vector<float>> numbers(const Json& scaling,
                                   const char* key,
                                   size_t n) {
  const auto it = scaling.find(key);
  std::vector<float> values;
  if (it != scaling.end() && it->is_array()) {
    for (const Json& value : *it) {
      if (!value.is_number()) break;
      values.push_back(value.get<float>());
    }
  }
  if (values.size() != n) {
    return invalid_input(
        fmt::format("config.json: rope_scaling.{} must be {} numbers", key, n));
  }
  return values;
}

// base ** (arange(0, dims, 2) / dims), as mlx-lm writes it.
mx::array powers(double base, uint32_t dims) {
  const mx::array exponents =
      mx::divide(mx::arange(0.0, static_cast<double>(dims), 2.0, mx::float32),
                 scalar(dims));
  return mx::power(scalar(base), exponents);
}

std::string rope_type(const Json& scaling) {
  for (const char* key : {"type", "rope_type"}) {
    const auto it = scaling.find(key);
    if (it == scaling.end()) continue;
    if (it->is_string() && !it->get<std::string>().empty()) {
      return it->get<std::string>();
    }
  }
  return "default";
}

// yarn's get_mscale (Peng et al., 2023, eq. 22 as in the reference code).
double yarn_mscale(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

}  // namespace

Result<Rope> Rope::make(const Options& options) {
  if (options.dims == 0 || options.dims % 2 != 0) {
    return invalid_input(
        fmt::format("config.json: the rotary dimension must be even, it is {}",
                    options.dims));
  }
  if (!(options.base > 0) || !std::isfinite(options.base)) {
    return invalid_input(fmt::format(
        "config.json: rope_theta must be positive, it is {}", options.base));
  }
  Rope rope;
  rope.dims_ = options.dims;
  rope.traditional_ = options.traditional;
  rope.base_ = static_cast<float>(options.base);
  const Json none = Json::object();
  const Json& scaling =
      options.scaling != nullptr && options.scaling->is_object()
          ? *options.scaling
          : none;
  const std::string type = rope_type(scaling);
  if (type == "linear") {
    FLASH_ASSIGN_OR_RETURN(const double factor, number(scaling, "factor"));
    rope.scale_ = static_cast<float>(1 / factor);
  } else if (type == "dynamic") {
    FLASH_ASSIGN_OR_RETURN(rope.dynamic_factor_, number(scaling, "factor"));
    if (options.max_position_embeddings == 0 || options.dims <= 2) {
      return invalid_input(
          "config.json: rope_scaling dynamic needs max_position_embeddings");
    }
    rope.dynamic_base_ = options.base;
    rope.dynamic_max_position_ = options.max_position_embeddings;
  } else if (type == "llama3") {
    FLASH_RETURN_IF_ERROR(rope.set_llama3(scaling, options.base));
  } else if (type == "yarn" || type == "deepseek_yarn" ||
             type == "telechat3-yarn") {
    FLASH_RETURN_IF_ERROR(rope.set_yarn(scaling, options.base));
  } else if (type == "longrope") {
    FLASH_RETURN_IF_ERROR(rope.set_longrope(
        scaling, options.base, options.max_position_embeddings));
  } else if (type == "freq_factors") {
    FLASH_RETURN_IF_ERROR(rope.set_freq_factors(scaling, options.base));
  } else if (type != "default" && type != "mrope") {
    return unsupported(fmt::format(
        "config.json: rope_scaling type '{}' is not supported", type));
  }
  if (rope.inv_freqs_.empty()) {
    // mlx: exp(arange(0, -half, -1) * (log(base) / half)), in float32.
    const int half = static_cast<int>(rope.dims_ / 2);
    const mx::array inverse = mx::exp(mx::multiply(
        mx::arange(0.0, -static_cast<double>(half), -1.0, mx::float32),
        mx::array(std::log(rope.base_) / static_cast<float>(half),
                  mx::float32)));
    mx::array host = inverse;
    host.eval();
    rope.inv_freqs_.assign(host.data<float>(), host.data<float>() + half);
  }
  return rope;
}

void Rope::set_freqs(mx::array freqs) {
  mx::array inverse = mx::reciprocal(freqs);
  mx::eval(freqs, inverse);
  inv_freqs_.assign(inverse.data<float>(), inverse.data<float>() + dims_ / 2);
  freqs_ = std::move(freqs);
}

Status Rope::set_llama3(const Json& scaling, double base) {
  FLASH_ASSIGN_OR_RETURN(const double factor, number(scaling, "factor"));
  FLASH_ASSIGN_OR_RETURN(const double low_factor,
                         number_or(scaling, "low_freq_factor", 1.0));
  FLASH_ASSIGN_OR_RETURN(const double high_factor,
                         number_or(scaling, "high_freq_factor", 4.0));
  FLASH_ASSIGN_OR_RETURN(
      const double old_context,
      number_or(scaling, "original_max_position_embeddings", 8192));
  if (low_factor == 0 || high_factor == low_factor || high_factor == 0) {
    return invalid_input(
        "config.json: rope_scaling low_freq_factor and high_freq_factor must "
        "differ and not be 0");
  }
  const double low_wavelen = old_context / low_factor;
  const double high_wavelen = old_context / high_factor;

  mx::array freqs = powers(base, dims_);
  const mx::array wavelens = mx::multiply(scalar(2 * std::numbers::pi), freqs);
  freqs = mx::where(mx::greater(wavelens, scalar(low_wavelen)),
                    mx::multiply(freqs, scalar(factor)),
                    freqs);
  const mx::array medium =
      mx::bitwise_and(mx::greater(wavelens, scalar(high_wavelen)),
                      mx::less(wavelens, scalar(low_wavelen)));
  const mx::array smooth =
      mx::divide(mx::subtract(mx::divide(scalar(old_context), wavelens),
                              scalar(low_factor)),
                 scalar(high_factor - low_factor));
  const mx::array smooth_freqs = mx::divide(
      freqs,
      mx::add(mx::divide(mx::subtract(scalar(1), smooth), scalar(factor)),
              smooth));
  set_freqs(mx::where(medium, smooth_freqs, freqs));
  return Status();
}

Status Rope::set_yarn(const Json& scaling, double base) {
  FLASH_ASSIGN_OR_RETURN(const double factor, number(scaling, "factor"));
  FLASH_ASSIGN_OR_RETURN(
      const double original,
      number_or(scaling, "original_max_position_embeddings", 4096));
  FLASH_ASSIGN_OR_RETURN(const double beta_fast,
                         number_or(scaling, "beta_fast", 32));
  FLASH_ASSIGN_OR_RETURN(const double beta_slow,
                         number_or(scaling, "beta_slow", 1));
  FLASH_ASSIGN_OR_RETURN(const double mscale, number_or(scaling, "mscale", 1));
  FLASH_ASSIGN_OR_RETURN(const double mscale_all_dim,
                         number_or(scaling, "mscale_all_dim", 0));
  const double dims = dims_;
  const auto correction_dim = [&](double rotations) {
    return dims * std::log(original / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(base));
  };
  double low = std::max(std::floor(correction_dim(beta_fast)), 0.0);
  double high = std::min(std::ceil(correction_dim(beta_slow)), dims - 1);
  if (!std::isfinite(low) || !std::isfinite(high)) {
    return invalid_input(
        "config.json: rope_scaling yarn parameters give no finite range");
  }
  if (low == high) high += 0.001;  // as mlx-lm: no division by zero

  const double all = yarn_mscale(factor, mscale_all_dim);
  mscale_ = static_cast<float>(yarn_mscale(factor, mscale) / all);
  const uint32_t half = dims_ / 2;
  const mx::array extra = powers(base, dims_);
  const mx::array inter = mx::multiply(scalar(factor), extra);
  const mx::array ramp = mx::clip(
      mx::divide(
          mx::subtract(
              mx::arange(0.0, static_cast<double>(half), 1.0, mx::float32),
              scalar(low)),
          scalar(high - low)),
      scalar(0),
      scalar(1));
  const mx::array mask = mx::subtract(scalar(1), ramp);
  set_freqs(
      mx::divide(mx::multiply(inter, extra),
                 mx::add(mx::multiply(inter, mask),
                         mx::multiply(extra, mx::subtract(scalar(1), mask)))));
  return Status();
}

Status Rope::set_longrope(const Json& scaling,
                          double base,
                          uint64_t max_position) {
  FLASH_ASSIGN_OR_RETURN(const double original,
                         number(scaling, "original_max_position_embeddings"));
  FLASH_ASSIGN_OR_RETURN(const std::vector<float> factors,
                         numbers(scaling, "long_factor", dims_ / 2));
  const double ratio = static_cast<double>(max_position) / original;
  mscale_ = ratio <= 1 ? 1.0f
                       : static_cast<float>(std::sqrt(
                             1 + std::log(ratio) / std::log(original)));
  set_freqs(mx::multiply(
      mx::array(factors.begin(), {static_cast<int>(factors.size())}),
      powers(base, dims_)));
  return Status();
}

// GGUF's rope_freqs.weight: a divisor for each frequency.
Status Rope::set_freq_factors(const Json& scaling, double base) {
  FLASH_ASSIGN_OR_RETURN(const std::vector<float> factors,
                         numbers(scaling, "freq_factors", dims_ / 2));
  set_freqs(mx::multiply(
      mx::array(factors.begin(), {static_cast<int>(factors.size())}),
      powers(base, dims_)));
  return Status();
}

float Rope::dynamic_base(uint64_t length) const {
  const auto max = static_cast<double>(dynamic_max_position_);
  const double seen = std::max(static_cast<double>(length), max);
  const double dims = dims_;
  return static_cast<float>(
      dynamic_base_ *
      std::pow(dynamic_factor_ * seen / max - (dynamic_factor_ - 1),
               dims / (dims - 2)));
}

void Rope::fill(std::span<const uint32_t> positions, float* table) const {
  const size_t half = dims_ / 2;
  std::vector<float> dynamic;
  for (const uint32_t position : positions) {
    const float* inverse = inv_freqs_.data();
    if (dynamic_factor_ != 0 && position + 1 > dynamic_max_position_) {
      // A function of the position alone: the length when it was the newest.
      const float c =
          std::log(dynamic_base(position + 1)) / static_cast<float>(half);
      dynamic.resize(half);
      for (size_t i = 0; i < half; ++i) {
        dynamic[i] = std::exp(-static_cast<float>(i) * c);
      }
      inverse = dynamic.data();
    }
    const float scaled = static_cast<float>(position) * scale_;
    for (size_t i = 0; i < half; ++i) {
      const float angle = scaled * inverse[i];
      table[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      table[half + i] =
          static_cast<float>(std::sin(static_cast<double>(angle)));
    }
    table += dims_;
  }
}

mx::array Rope::apply(const mx::array& x, int offset, mx::Stream stream) const {
  const int dims = static_cast<int>(dims_);
  mx::array input = x;
  if (mscale_ != 1.0f) {
    // mlx-lm: x.at[..., :dims].multiply(mscale), in x's dtype.
    const mx::array factor(mscale_, x.dtype());
    if (dims == x.shape(-1)) {
      input = mx::multiply(x, factor, stream);
    } else {
      const auto parts = mx::split(x, mx::Shape{dims}, -1, stream);
      input = mx::concatenate(
          {mx::multiply(parts[0], factor, stream), parts[1]}, -1, stream);
    }
  }
  std::optional<float> base;
  if (!freqs_) base = base_;
  if (dynamic_factor_ != 0) {
    base = dynamic_base(static_cast<uint64_t>(offset) +
                        static_cast<uint64_t>(x.shape(-2)));
  }
  return mx::fast::rope(
      input, dims, traditional_, base, scale_, offset, freqs_, stream);
}

}  // namespace mlx_flash::nn
