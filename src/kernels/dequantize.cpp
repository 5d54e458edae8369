// SPDX-License-Identifier: MIT
#include "kernels/dequantize.h"

#include "base/check.h"
#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/dequantize.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/visit_format-inl.h"
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
void decode_row(
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

void decode(
    const WeightRows& w, size_t r, size_t k_begin, size_t k_end, float* out) {
  visit_format(w.format, [&](auto decoder) HWY_ATTR {
    using Decoder = typename decltype(decoder)::type;
    decode_row<Decoder>(w, r, k_begin, k_end, out);
  });
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
  const size_t begin = w.cols / 256 * 256;
  float last[256];
  decode(w, r, begin, w.cols, last);
  for (size_t i = whole; i < w.cols; ++i) out[i] = last[i - begin];
}

}  // namespace mlx_flash::kernels
#endif
