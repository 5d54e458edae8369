// SPDX-License-Identifier: MIT
#include "nn/stock_weight.h"

#include <bit>
#include <cstring>
#include <vector>

#include "kernels/dequantize.h"
#include "nn/array_util.h"

namespace mlx_flash::nn::stock {
namespace {

mx::Dtype weight_dtype(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kF16:
      return mx::float16;
    case WeightKind::kBF16:
    case WeightKind::kFp8:
      return mx::bfloat16;
    default:
      return format.split() ? mx::uint32 : mx::float32;
  }
}

mx::Dtype scale_dtype(const WeightFormat& format) {
  return format.kind == WeightKind::kAffine ? mlx_dtype(format.scale_dtype)
                                            : mx::uint8;
}

// fp8 and GGUF's block formats are; all others keep their bytes.
bool is_dequantised(const WeightFormat& format) {
  return format.kind > WeightKind::kNvfp4;
}

// Row `r` as bfloat16, which fp8's values are.
void put_bfloat_row(const kernels::WeightRows& rows, size_t r, std::byte* out) {
  std::vector<float> values(rows.cols);
  kernels::dequantize_row(rows, r, values.data());
  for (size_t k = 0; k < rows.cols; ++k) {
    const auto high =
        static_cast<uint16_t>(std::bit_cast<uint32_t>(values[k]) >> 16);
    std::memcpy(out + 2 * k, &high, 2);
  }
}

}  // namespace

const char* mode_name(const WeightFormat& format) {
  switch (format.kind) {
    case WeightKind::kMxfp4:
      return "mxfp4";
    case WeightKind::kMxfp8:
      return "mxfp8";
    case WeightKind::kNvfp4:
      return "nvfp4";
    default:
      return "affine";
  }
}

Destination new_weight(const WeightFormat& format,
                       size_t cols,
                       mx::Shape lead_and_rows) {
  const RowBytes row = row_bytes(format, cols);
  const mx::Dtype dtype = weight_dtype(format);
  const auto shape = [&](size_t last) {
    mx::Shape all = lead_and_rows;
    all.push_back(static_cast<int>(last));
    return all;
  };
  const size_t width =
      is_dequantised(format) ? cols : row.weight / mx::size_of(dtype);
  std::byte* data[kTilePartsMax] = {};
  Destination out{.weight = {.weight = new_array(shape(width), dtype, &data[0]),
                             .scales = std::nullopt,
                             .biases = std::nullopt}};
  if (row.scales != 0 && !is_dequantised(format)) {
    const mx::Dtype type = scale_dtype(format);
    const mx::Shape scales = shape(row.scales / mx::size_of(type));
    out.weight.scales = new_array(scales, type, &data[1]);
    if (row.biases != 0) {
      out.weight.biases = new_array(scales, type, &data[2]);
    }
  }
  std::memcpy(out.data, data, sizeof(data));
  return out;
}

void put_row(const kernels::WeightRows& rows,
             size_t r,
             size_t to,
             const Destination& out) {
  if (rows.format.kind == WeightKind::kFp8) {
    return put_bfloat_row(rows, r, out.data[0] + to * rows.cols * 2);
  }
  if (is_dequantised(rows.format)) {
    kernels::dequantize_row(
        rows, r, reinterpret_cast<float*>(out.data[0]) + to * rows.cols);
    return;
  }
  const RowBytes row = row_bytes(rows.format, rows.cols);
  const std::byte* parts[] = {rows.weight, rows.scales, rows.biases};
  const size_t bytes[] = {row.weight, row.scales, row.biases};
  for (size_t p = 0; p < kTilePartsMax; ++p) {
    if (bytes[p] == 0) continue;
    std::memcpy(out.data[p] + to * bytes[p], parts[p] + r * bytes[p], bytes[p]);
  }
}

}  // namespace mlx_flash::nn::stock
