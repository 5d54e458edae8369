// SPDX-License-Identifier: MIT

// One row of x and weights that are floats: widened in registers and used at
// once.

#include <algorithm>

#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/float_matvec.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/prefetch.h"
#include "kernels/row_kernels.h"
#if !FLASH_KERNEL_STUB
#include "kernels/float_rows-inl.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace mlx_flash::kernels {
namespace HWY_NAMESPACE {

#if FLASH_KERNEL_STUB

void float_matvec(const WeightRows&, size_t, size_t, const float*, float*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Rows side by side, to hide the latency of the one chain of additions that
// each row's sixteen accumulators are.
constexpr size_t kRows = 4;

// Values of a row that are asked for at once.
constexpr size_t kStep = 128;

template <class Decoder>
void matvec_rows(const WeightRows& w,
                 size_t row_begin,
                 size_t row_end,
                 const float* x,
                 float* y) {
  const RowPrefetch prefetch(w, kStep, kRows);
  for (size_t r = row_begin; r < row_end; r += kRows) {
    // Past the end the last row is computed again and thrown away.
    const auto row = [&](size_t i) { return std::min(r + i, row_end - 1); };
    const Decoder rows[kRows] = {Decoder(w, row(0)),
                                 Decoder(w, row(1)),
                                 Decoder(w, row(2)),
                                 Decoder(w, row(3))};
    Acc16 acc[kRows] = {zero16(), zero16(), zero16(), zero16()};
    const size_t size = rows[0].group_size();
    const size_t groups = w.cols / size;
    for (size_t g = 0; g < groups; ++g) {
      const float* xg = x + g * size;
      if (g * size % kStep == 0) {
        for (size_t i = 0; i < kRows; ++i) {
          prefetch.step(r + i, g * size / kStep);
        }
      }
      const auto add_group = [&](size_t i) FLASH_INLINE_LAMBDA {
        rows[i].group(g, [&](auto p, size_t k, VF v) FLASH_INLINE_LAMBDA {
          acc[i].part[p] =
              hn::MulAdd(v, hn::LoadU(DF(), xg + k), acc[i].part[p]);
        });
      };
      add_group(0);
      add_group(1);
      add_group(2);
      add_group(3);
    }
    if constexpr (kHasTail<Decoder>) {
      const size_t n = w.cols % 16;
      if (n != 0) {
        float xn[16] = {};
        std::copy_n(x + w.cols - n, n, xn);
        for (size_t i = 0; i < kRows; ++i) {
          const Acc16 v = rows[i].tail(w.cols, n);
          for_parts([&](auto p) FLASH_INLINE_LAMBDA {
            acc[i].part[p] = hn::MulAdd(
                v.part[p], hn::LoadU(DF(), xn + p * kN), acc[i].part[p]);
          });
        }
      }
    }
    for (size_t i = 0; i < std::min(kRows, row_end - r); ++i) {
      y[r + i] = reduce16(acc[i]);
    }
  }
}

void float_matvec(const WeightRows& w,
                  size_t row_begin,
                  size_t row_end,
                  const float* x,
                  float* y) {
  visit_float_rows(w.format, [&](auto decoder) HWY_ATTR {
    using Decoder = typename decltype(decoder)::type;
    matvec_rows<Decoder>(w, row_begin, row_end, x, y);
  });
}

#endif  // FLASH_KERNEL_STUB

}  // namespace HWY_NAMESPACE
}  // namespace mlx_flash::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mlx_flash::kernels {

HWY_EXPORT(float_matvec);

FloatMatvecFn float_matvec_fn() {
  return HWY_DYNAMIC_DISPATCH(float_matvec);
}

}  // namespace mlx_flash::kernels
#endif
