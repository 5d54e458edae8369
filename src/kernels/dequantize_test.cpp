// SPDX-License-Identifier: MIT
#include "kernels/dequantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "kernels/reference.h"
#include "kernels/test_matrix.h"

namespace mlx_flash::kernels {
namespace {

std::vector<float> dequantized(const WeightFormat& format,
                               size_t cols,
                               const std::vector<uint8_t>& weight,
                               const std::vector<uint8_t>& scales = {},
                               const std::vector<uint8_t>& biases = {}) {
  const auto bytes = [](const std::vector<uint8_t>& v) {
    return reinterpret_cast<const std::byte*>(v.data());
  };
  EXPECT_EQ(weight.size(), row_bytes(format, cols).weight);
  EXPECT_EQ(scales.size(), row_bytes(format, cols).scales);
  EXPECT_EQ(biases.size(), row_bytes(format, cols).biases);
  const WeightRows w = {
      format, 1, cols, bytes(weight), bytes(scales), bytes(biases)};
  std::vector<float> out(cols);
  dequantize_row(w, 0, out.data());
  return out;
}

TEST(Dequantize, EqualsTheReferenceForEveryFormatAndTarget) {
  for (int64_t target : runnable_targets()) {
    const ForcedTarget forced(target);
    Random random(31);
    for (const WeightFormat& format : reference::all_formats()) {
      for (size_t cols :
           std::initializer_list<size_t>{1, 15, 16, 33, 300, 1280}) {
        cols = (cols + format.group_size - 1) / format.group_size *
               format.group_size;
        const TestMatrix m(format, 3, cols, random, random() % 8);
        for (size_t r = 0; r < 3; ++r) {
          std::vector<float> out(cols);  // exact: a sanitizer sees the end
          dequantize_row(m.rows(), r, out.data());
          for (size_t k = 0; k < cols; ++k) {
            ASSERT_TRUE(same_bits(out[k], reference::weight(m.rows(), r, k)))
                << target_label(target) << " " << format_name(format) << " row "
                << r << " column " << k << " of " << cols;
          }
        }
      }
    }
  }
}

// Worked by hand: scale 0.5 (0x3800), minimum -1 (0xBC00) in float16.
TEST(Dequantize, HandWorkedQ4Blocks) {
  std::vector<uint8_t> q4_0 = {0x00, 0x38};
  std::vector<uint8_t> q4_1 = {0x00, 0x38, 0x00, 0xBC};
  for (unsigned i = 0; i < 16; ++i) {
    q4_0.push_back(static_cast<uint8_t>(i | ((15 - i) << 4)));
    q4_1.push_back(static_cast<uint8_t>(i | ((15 - i) << 4)));
  }
  const auto a = dequantized(block_format(WeightKind::kQ4_0), 32, q4_0);
  const auto b = dequantized(block_format(WeightKind::kQ4_1), 32, q4_1);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(a[static_cast<size_t>(i)], 0.5f * static_cast<float>(i - 8));
    EXPECT_EQ(a[static_cast<size_t>(i + 16)], 0.5f * static_cast<float>(7 - i));
    EXPECT_EQ(b[static_cast<size_t>(i)], 0.5f * static_cast<float>(i) - 1);
    EXPECT_EQ(b[static_cast<size_t>(i + 16)],
              0.5f * static_cast<float>(15 - i) - 1);
  }
}

TEST(Dequantize, HandWorkedQ8Block) {
  std::vector<uint8_t> block = {0x00, 0x34};  // 0.25
  for (int i = 0; i < 32; ++i) block.push_back(static_cast<uint8_t>(i - 128));
  const auto w = dequantized(block_format(WeightKind::kQ8_0), 32, block);
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(w[static_cast<size_t>(i)], 0.25f * static_cast<float>(i - 128));
  }
}

TEST(Dequantize, HandWorkedQ5Blocks) {
  // Value i is i % 16 with the fifth bit set for odd i; d = 1, m = 2.
  std::vector<uint8_t> q5_0(22, 0xAA);
  std::vector<uint8_t> q5_1(24, 0xAA);
  q5_0[0] = q5_1[0] = q5_1[2] = 0;
  q5_0[1] = q5_1[1] = 0x3C;
  q5_1[3] = 0x40;
  for (size_t i = 0; i < 16; ++i) {
    q5_0[6 + i] = q5_1[8 + i] = static_cast<uint8_t>(i * 17);
  }
  const auto w = dequantized(block_format(WeightKind::kQ5_0), 32, q5_0);
  const auto v = dequantized(block_format(WeightKind::kQ5_1), 32, q5_1);
  for (int i = 0; i < 32; ++i) {
    const int q = i % 16 + (i % 2 == 1 ? 16 : 0);
    EXPECT_EQ(w[static_cast<size_t>(i)], static_cast<float>(q - 16));
    EXPECT_EQ(v[static_cast<size_t>(i)], static_cast<float>(q + 2));
  }
}

TEST(Dequantize, HandWorkedAffine) {
  // 3 bits, fields 0..7 four times: 0b111110101100011010001000, from the low
  // end; scale 2, bias -3 in bfloat16.
  const std::vector<uint8_t> three = {
      0x88, 0xC6, 0xFA, 0x88, 0xC6, 0xFA, 0x88, 0xC6, 0xFA, 0x88, 0xC6, 0xFA};
  const auto w = dequantized(affine_format(3, 32, DType::kBF16),
                             32,
                             three,
                             {0x00, 0x40},
                             {0x40, 0xC0});
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(w[i], 2 * static_cast<float>(i % 8) - 3);
  }
}

TEST(Dequantize, HandWorkedFloatingPointCodes) {
  std::vector<uint8_t> codes;
  for (unsigned i = 0; i < 16; ++i) {
    codes.push_back(
        static_cast<uint8_t>(((2 * i + 1) % 16 << 4) | (2 * i % 16)));
  }
  const float e2m1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const auto mx =
      dequantized(block_format(WeightKind::kMxfp4), 32, codes, {129});
  codes.resize(8);
  const auto nv =
      dequantized(block_format(WeightKind::kNvfp4), 16, codes, {0xC4});  // -3
  for (size_t i = 0; i < 16; ++i) {
    const float value = i < 8 ? e2m1[i] : -e2m1[i - 8];
    EXPECT_TRUE(same_bits(mx[i], 4 * value)) << i;
    EXPECT_TRUE(same_bits(nv[i], -3 * value)) << i;
  }
  // Blocks of 128 columns: the products 1/3 and 1/5 rounded to bfloat16, and a
  // block that is cut off.
  std::vector<uint8_t> ones(130, 0x38);
  const std::vector<uint8_t> third_fifth = {
      0xAB, 0xAA, 0xAA, 0x3E, 0xCD, 0xCC, 0x4C, 0x3E};
  const auto f8 =
      dequantized(block_format(WeightKind::kFp8), 130, ones, third_fifth);
  for (size_t i = 0; i < 130; ++i) {
    EXPECT_EQ(f8[i], i < 128 ? 0x1.56p-2f : 0x1.9ap-3f) << i;
  }
  std::vector<uint8_t> eight(32, 0);
  const uint8_t some[] = {0x00, 0x01, 0x07, 0x08, 0x38, 0x7E, 0x80, 0xB8, 0xFE};
  std::copy(std::begin(some), std::end(some), eight.begin());
  eight[31] = 0x7F;
  const auto m8 =
      dequantized(block_format(WeightKind::kMxfp8), 32, eight, {127});
  const float expected[] = {
      0, 0x1p-9f, 0x7p-9f, 0x1p-6f, 1, 448, -0.0f, -1, -448};
  for (size_t i = 0; i < 9; ++i)
    EXPECT_TRUE(same_bits(m8[i], expected[i])) << i;
  EXPECT_TRUE(std::isnan(m8[31]));
}

// ---- What MLX makes of the same bytes (tools/record_dequantize.py) ----

std::vector<uint8_t> bytes_of_hex(const std::string& text) {
  std::vector<uint8_t> bytes;
  if (text == "-") return bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes.push_back(
        static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

struct Recorded {
  WeightFormat format;
  std::vector<uint8_t> weight;
  std::vector<uint8_t> scales;
  std::vector<uint8_t> biases;
  std::vector<float> values;
  bool gguf = false;
};

Recorded parse_recorded(const std::string& line) {
  std::istringstream in(line);
  std::string kind, dtype, weight, scales, biases, values;
  int bits = 0;
  int group = 0;
  in >> kind >> bits >> group >> dtype >> weight >> scales >> biases >> values;
  Recorded row;
  if (kind == "affine") {
    row.format = affine_format(bits,
                               group,
                               dtype == "float32"   ? DType::kF32
                               : dtype == "float16" ? DType::kF16
                                                    : DType::kBF16);
  } else {
    for (const WeightFormat& format : reference::all_formats()) {
      if (format_name(format) == kind) row.format = format;
    }
    row.gguf = kind[0] == 'Q';  // not MXFP4, which is exact
  }
  row.weight = bytes_of_hex(weight);
  row.scales = bytes_of_hex(scales);
  row.biases = bytes_of_hex(biases);
  const auto bytes = bytes_of_hex(values);
  row.values.resize(bytes.size() / 4);
  std::memcpy(row.values.data(), bytes.data(), bytes.size());
  return row;
}

TEST(Dequantize, AgreesWithMlx) {
  std::ifstream file(FLASH_TESTDATA "/kernels/mlx_dequantize.txt");
  std::string line;
  int rows = 0;
  while (std::getline(file, line)) {
    const Recorded row = parse_recorded(line);
    const auto w = dequantized(
        row.format, row.values.size(), row.weight, row.scales, row.biases);
    float largest = 0;
    for (float v : row.values) {
      if (std::isfinite(v)) largest = std::max(largest, std::fabs(v));
    }
    // MLX rounds scale * q before it adds the bias, and expands K-quants to
    // float16. Floating-point codes have one exact value.
    float tolerance = 0;
    if (row.format.kind == WeightKind::kAffine) tolerance = largest * 0x1p-22f;
    if (row.gguf) tolerance = largest * 0x1p-10f;
    for (size_t k = 0; k < w.size(); ++k) {
      if (same_bits(w[k], row.values[k])) continue;
      // MLX 0.32.4 gives odd sub-blocks of Q4_K the scale and minimum of the
      // even one before them; ggml gives them their own.
      if (row.format.kind == WeightKind::kQ4_K && k / 32 % 2 == 1) continue;
      ASSERT_NEAR(w[k], row.values[k], tolerance)
          << format_name(row.format) << " line " << rows << " column " << k;
      ASSERT_GT(tolerance, 0) << "floating-point codes are exact";
    }
    ++rows;
  }
  EXPECT_EQ(rows, 76);
}

// ggml's formats bit for bit: products of a float16, a sub-block scale and a
// code are exact in float32, so that a fused multiply-add rounds as numpy does.
TEST(Dequantize, EqualsTheGgufPackage) {
  std::ifstream file(FLASH_TESTDATA "/kernels/gguf_dequantize.txt");
  std::string line;
  int rows = 0;
  for (; std::getline(file, line); ++rows) {
    const Recorded row = parse_recorded(line);
    for (int64_t target : runnable_targets()) {
      const ForcedTarget forced(target);
      const auto w = dequantized(row.format, row.values.size(), row.weight);
      for (size_t k = 0; k < w.size(); ++k) {
        ASSERT_TRUE(same_bits(w[k], row.values[k]))
            << target_label(target) << " " << format_name(row.format)
            << " column " << k << ": " << w[k] << ", not " << row.values[k];
      }
    }
  }
  EXPECT_EQ(rows, 11);
}

// 255 is 2^127 to ggml, and code 8 no -0: what the file's owner says.
TEST(Dequantize, HandWorkedMxfp4Block) {
  std::vector<uint8_t> block = {255};
  for (unsigned i = 0; i < 16; ++i) {
    block.push_back(static_cast<uint8_t>(i | ((15 - i) << 4)));
  }
  const auto format = block_format(WeightKind::kGgufMxfp4);
  const int twice[] = {0, 1, 2, 3, 4, 6, 8, 12};
  const auto value = [&](size_t code, float half) {
    const int t = code < 8 ? twice[code] : -twice[code - 8];
    return static_cast<float>(t) * half;
  };
  for (const auto& [scale, half] :
       std::vector<std::pair<uint8_t, float> >{{0, 0x1p-128f},
                                               {1, 0x1p-127f},
                                               {2, 0x1p-126f},
                                               {128, 1.0f},
                                               {255, 0x1p127f}}) {
    block[0] = scale;
    const auto w = dequantized(format, 32, block);
    for (size_t i = 0; i < 16; ++i) {
      EXPECT_TRUE(same_bits(w[i], value(i, half))) << int{scale} << " " << i;
      EXPECT_TRUE(same_bits(w[i + 16], value(15 - i, half))) << int{scale};
    }
  }
}

}  // namespace
}  // namespace mlx_flash::kernels
