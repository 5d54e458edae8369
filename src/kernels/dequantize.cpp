// SPDX-License-Identifier: MIT
#include "kernels/dequantize.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/dequantize.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/float_rows-inl.h"
#include "kernels/visit_codes-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

void decode(const WeightRows&, size_t, size_t, size_t, float*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

template <class Decoder>
void decode_floats(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out) {
  const Decoder row(w, r);
  const size_t size = row.group_size();
  for (size_t g = k_begin / size; g < k_end / size; ++g, out += size) {
    row.group(g, [&](auto, size_t k, VF v) FLASH_INLINE_LAMBDA {
      hn::StoreU(v, DF(), out + k);
    });
  }
  if constexpr (kHasTail<Decoder>) {
    const size_t n = k_end % 16;
    if (n != 0) store16(row.tail(k_end, n), out);
  }
}

// Group kQ of chunk c, in natural order.
template <class Codes, size_t kQ>
void decode_group(const Codes& row,
                  size_t c,
                  CodeOrder order,
                  const float* scale,
                  const float* offset,
                  float* out) {
  alignas(64) int16_t codes[128];
  Codes::template codes<kQ>(
      row.chunk(c), c, [&](size_t k, const S16& v) FLASH_INLINE_LAMBDA {
        store_s16(v, codes + k);
      });
  for (size_t i = 0; i < row.group_size(); ++i) {
    const auto code = static_cast<float>(codes[i] - Codes::kZero);
    size_t k = i;
    if (order == CodeOrder::kEvensFirst) {
      k = i / 32 * 32 + i % 16 * 2 + i % 32 / 16;
    }
    if constexpr (Codes::kOffset) {
      out[k] = fma_one(scale[kQ], code, offset[kQ]);
    } else {
      out[k] = scale[kQ] * code;
    }
  }
}

template <class Codes>
void decode_codes(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out) {
  const Codes row(w, r);
  const size_t group = row.group_size();
  const CodeOrder order = code_order(w.format);
  for (size_t k = k_begin; k < k_end; k += kChunkGroups * group) {
    const size_t c = k / (kChunkGroups * group);
    const size_t n = std::min(kChunkGroups, (k_end - k) / group);
    float scale[kChunkGroups];
    float offset[kChunkGroups];
    F8 scales;
    F8 offsets = set_f8(0.0f);
    row.scales(c, n, &scales, &offsets);
    store_f8(scales, scale);
    store_f8(offsets, offset);
    const auto put = [&](auto q) HWY_ATTR {
      if (q >= n) return;
      decode_group<Codes, q>(row, c, order, scale, offset, out);
      out += group;
    };
    put(Part<0>());
    put(Part<1>());
    put(Part<2>());
    put(Part<3>());
    put(Part<4>());
    put(Part<5>());
    put(Part<6>());
    put(Part<7>());
  }
}

// Integers have no -0: turns the zeros that stand for e2m1's -0.
void restore_minus_zero(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out) {
  const uint8_t* row = bytes_of(w.weight, r * w.cols / 2);
  for (size_t k = k_begin; k < k_end; ++k) {
    const int code = (row[k / 2] >> (k % 2 * 4)) & 15;
    if (code == 8) out[k - k_begin] = -out[k - k_begin];
  }
}

void decode(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out) {
  if (integer_coded(w.format)) {
    visit_codes(w.format, [&](auto type) HWY_ATTR {
      using Codes = typename decltype(type)::type;
      decode_codes<Codes>(w, r, k_begin, k_end, out);
    });
    if (w.format.kind == WeightKind::kMxfp4 ||
        w.format.kind == WeightKind::kNvfp4) {
      restore_minus_zero(w, r, k_begin, k_end, out);
    }
  } else {
    visit_float_rows(w.format, [&](auto type) HWY_ATTR {
      using Decoder = typename decltype(type)::type;
      decode_floats<Decoder>(w, r, k_begin, k_end, out);
    });
  }
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(decode);

DecodeFn decode_fn() {
  return HWY_DYNAMIC_DISPATCH(decode);
}

void dequantize_row(const WeightRows& w, size_t r, float* out) {
  FLASH_CHECK(r < w.rows && format_accepts(w.format, w.cols));
  const DecodeFn decode = decode_fn();
  const size_t whole = w.cols / 16 * 16;
  const size_t n = w.cols - whole;
  decode(w, r, 0, whole, out);
  if (n == 0) return;
  // A dense row's last values by way of a copy: decoding writes sixteen.
  const size_t begin = w.cols / 1024 * 1024;
  float last[1024];
  decode(w, r, begin, w.cols, last);
  for (size_t i = whole; i < w.cols; ++i) out[i] = last[i - begin];
}

}  // namespace mlx_flash::kernels
#endif
