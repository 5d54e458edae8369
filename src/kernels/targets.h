// SPDX-License-Identifier: MIT
#pragma once

// The instruction sets kernels are compiled for, chosen when the program runs
// (Highway). Include before any header of Highway.
//
// Left out: x86 below AVX2, which has no fused multiply-add, and SVE, whose
// vectors have no size known to the compiler. Highway insists on a baseline
// that the compiler's flags allow, which on x86-64 is plain scalar code; there
// each kernel is a stub (FLASH_KERNEL_STUB) that kernels::supported() keeps
// from ever being called.

#include "base/check.h"

#ifdef HWY_DISABLED_TARGETS
#error "include kernels/targets.h before Highway"
#endif
// AVX-512 with VNNI and its company (Ice Lake, Zen 4 and later), which older
// versions of Highway leave out unless asked.
#define HWY_WANT_AVX3_DL 1
#define HWY_DISABLED_TARGETS                                                \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   HWY_WASM | HWY_WASM_EMU256 | HWY_RVV | HWY_PPC8)

// True while the baseline without a fused multiply-add is being compiled.
#define FLASH_KERNEL_STUB (HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128)
#define FLASH_KERNEL_STUB_CALLED() \
  ::mlx_flash::check_failed(__FILE__, __LINE__, "kernels::supported()")
