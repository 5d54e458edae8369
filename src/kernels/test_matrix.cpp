// SPDX-License-Identifier: MIT
#include "kernels/test_matrix.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/targets.h"
// Highway after its targets are chosen.
#include "hwy/highway.h"
#include "kernels/reference.h"

namespace mlx_flash::kernels {
namespace {

void fill_bytes(std::byte* p, size_t n, Random& random) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const uint64_t value = random();
    std::memcpy(p + i, &value, 8);
  }
  for (; i < n; ++i) p[i] = static_cast<std::byte>(random());
}

float uniform(Random& random) {
  return static_cast<float>(static_cast<int64_t>(random() >> 40) - (1 << 23)) *
         0x1p-23f;
}

void put(std::byte* p, DType dtype, float value) {
  if (dtype == DType::kF32) {
    std::memcpy(p, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::kF16
                            ? reference::float_to_half(value)
                            : reference::float_to_bfloat(value);
  std::memcpy(p, &bits, 2);
}

void fill_numbers(std::byte* p, size_t n, DType dtype, Random& random) {
  for (size_t i = 0; i < n; ++i) {
    put(p + i * dtype_bytes(dtype), dtype, uniform(random));
  }
}

// Offsets of the float16 numbers in a GGUF block.
std::vector<size_t> halves_of(WeightKind kind) {
  switch (kind) {
    case WeightKind::kQ4_1:
    case WeightKind::kQ5_1:
    case WeightKind::kQ4_K:
    case WeightKind::kQ5_K:
      return {0, 2};
    case WeightKind::kQ2_K:
      return {80, 82};
    case WeightKind::kQ3_K:
      return {108};
    case WeightKind::kQ6_K:
      return {208};
    default:
      return {0};
  }
}

void fill_scales(std::byte* p, size_t n, WeightKind kind, Random& random) {
  for (size_t i = 0; i < n; ++i) {
    // e8m0 around 1; e4m3 of any sign but never NaN.
    const uint64_t code = kind == WeightKind::kNvfp4
                              ? random() % 127 + random() % 2 * 128
                              : 117 + random() % 20;
    p[i] = static_cast<std::byte>(code);
  }
}

}  // namespace

TestMatrix::TestMatrix(const WeightFormat& format,
                       size_t rows,
                       size_t cols,
                       Random& random,
                       size_t misalignment)
    : misalignment_(misalignment) {
  const RowBytes bytes = row_bytes(format, cols);
  weight_.resize(misalignment + rows * bytes.weight);
  const size_t shared = format.scale_rows();
  const size_t above = shared == 1 ? 0 : shared - 1 - random() % 4;
  scales_.resize(misalignment +
                 (above + rows + shared - 1) / shared * bytes.scales);
  biases_.resize(misalignment + rows * bytes.biases);
  fill_bytes(weight(), rows * bytes.weight, random);
  if (format.kind == WeightKind::kMxfp8 || format.kind == WeightKind::kFp8) {
    for (size_t i = 0; i < rows * cols; ++i) {  // no NaN
      if ((weight()[i] & std::byte{0x7F}) == std::byte{0x7F}) {
        weight()[i] ^= std::byte{1};
      }
    }
  }
  const size_t groups = rows * (cols / format.group_size);
  switch (format.kind) {
    case WeightKind::kF32:
    case WeightKind::kF16:
    case WeightKind::kBF16: {
      const DType dtype = format.kind == WeightKind::kF32   ? DType::kF32
                          : format.kind == WeightKind::kF16 ? DType::kF16
                                                            : DType::kBF16;
      fill_numbers(weight(), rows * cols, dtype, random);
      break;
    }
    case WeightKind::kAffine:
      fill_numbers(scales(), groups, format.scale_dtype, random);
      fill_numbers(biases(), groups, format.scale_dtype, random);
      break;
    case WeightKind::kFp8:
      fill_numbers(scales(),
                   (scales_.size() - misalignment) / sizeof(float),
                   DType::kF32,
                   random);
      break;
    case WeightKind::kMxfp8:
    case WeightKind::kMxfp4:
    case WeightKind::kNvfp4:
      fill_scales(scales(), groups, format.kind, random);
      break;
    case WeightKind::kGgufMxfp4:
      for (size_t g = 0; g < groups; ++g) {
        const size_t block = rows * bytes.weight / groups;
        fill_scales(weight() + g * block, 1, format.kind, random);
      }
      break;
    default: {
      const size_t block = rows * bytes.weight / groups;
      for (size_t g = 0; g < groups; ++g) {
        for (size_t offset : halves_of(format.kind)) {
          put(weight() + g * block + offset, DType::kF16, uniform(random));
        }
      }
    }
  }
  rows_ = {format, rows, cols, weight(), scales(), biases(), above};
}

size_t TestMatrix::bytes() const {
  return weight_.size() + scales_.size() + biases_.size() - 3 * misalignment_;
}

std::vector<float> random_floats(size_t n, Random& random, bool special) {
  constexpr float kSpecial[] = {0.0f, -0.0f, 1e-40f, -1e-45f, 1e-30f, -1e-38f};
  std::vector<float> x(n);
  for (float& value : x) {
    value = uniform(random);
    if (special && random() % 3 == 0) value = kSpecial[random() % 6];
  }
  return x;
}

std::vector<int64_t> runnable_targets() {
  std::vector<int64_t> targets;
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (target != HWY_SCALAR && target != HWY_EMU128) targets.push_back(target);
  }
  return targets;
}

ForcedTarget::ForcedTarget(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
}
ForcedTarget::~ForcedTarget() {
  hwy::SetSupportedTargetsForTest(0);
}

std::string target_label(int64_t target) {
  return hwy::TargetName(target);
}

bool same_bits(float a, float b) {
  if (std::isnan(a) && std::isnan(b)) return true;
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

}  // namespace mlx_flash::kernels
