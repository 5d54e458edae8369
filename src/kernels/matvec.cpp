// SPDX-License-Identifier: MIT

// One row of x: weights are decoded in registers and used at once.

#include <algorithm>

#include "kernels/targets.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/matvec.cpp"
#include "hwy/cache_control.h"
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

void matvec(const WeightRows&, size_t, size_t, const float*, float*) {
  FLASH_KERNEL_STUB_CALLED();
}

#else

// Rows side by side, to hide the latency of the one chain of additions that
// each row's sixteen accumulators are.
constexpr size_t kRows = 4;

// Asks for the bytes that the same place of the next rows will need: each row
// is too short a stream for the hardware to foresee much of it.
class Prefetch {
 public:
  Prefetch(const WeightRows& w, size_t group_size)
      : w_(w),
        row_bytes_(row_bytes(w.format, w.cols).weight),
        group_bytes_(row_bytes_ * group_size / w.cols),
        ahead_(std::min(kRows * row_bytes_, kAheadMax)) {}

  HWY_INLINE void group(size_t r, size_t g) const {
    // An address past the matrix is never loaded from, nor does it fault.
    const uintptr_t p = reinterpret_cast<uintptr_t>(w_.weight) +
                        r * row_bytes_ + g * group_bytes_ + ahead_;
    for (size_t i = 0; i < group_bytes_; i += 64) {
      hwy::Prefetch(reinterpret_cast<const std::byte*>(p + i));
    }
  }

 private:
  static constexpr size_t kAheadMax = 8192;  // a part of the first cache

  const WeightRows& w_;
  size_t row_bytes_;
  size_t group_bytes_;
  size_t ahead_;
};

template <class Decoder>
void matvec_rows(const WeightRows& w,
                 size_t row_begin,
                 size_t row_end,
                 const float* x,
                 float* y) {
  const Prefetch prefetch(w, Decoder(w, row_begin).group_size());
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
      const auto add_group = [&](size_t i) FLASH_INLINE_LAMBDA {
        prefetch.group(r + i, g);
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

void matvec(const WeightRows& w,
            size_t row_begin,
            size_t row_end,
            const float* x,
            float* y) {
  visit_format(w.format, [&](auto decoder) HWY_ATTR {
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

HWY_EXPORT(matvec);

MatvecFn matvec_fn() {
  return HWY_DYNAMIC_DISPATCH(matvec);
}

}  // namespace mlx_flash::kernels
#endif
