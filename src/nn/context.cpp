// SPDX-License-Identifier: MIT
#include "nn/context.h"

#include "base/check.h"

namespace mlx_flash::nn {
namespace {

constexpr size_t kCacheLine = 64;

constexpr size_t kFloatBytes = Context::kThreadFloats * sizeof(float);
static_assert(kFloatBytes % kCacheLine == 0);

}  // namespace

void Context::reserve_scratch(size_t floats,
                              size_t prepared_bytes,
                              int threads,
                              size_t bytes_per_thread) {
  scratch_ = AlignedBuffer(floats * sizeof(float), kCacheLine);
  prepared_ = AlignedBuffer(prepared_bytes, kCacheLine);
  thread_stride_ =
      (bytes_per_thread + kCacheLine - 1) / kCacheLine * kCacheLine +
      kFloatBytes;
  thread_scratch_ =
      AlignedBuffer(thread_stride_ * static_cast<size_t>(threads), kCacheLine);
}

float* Context::scratch_floats(size_t n) {
  FLASH_CHECK(n * sizeof(float) <= scratch_.size());
  return reinterpret_cast<float*>(scratch_.data());
}

std::byte* Context::prepared(size_t bytes) {
  FLASH_CHECK(bytes <= prepared_.size());
  return prepared_.data();
}

float* Context::thread_floats(int thread) {
  return reinterpret_cast<float*>(thread_scratch_.data() +
                                  static_cast<size_t>(thread) * thread_stride_);
}

std::byte* Context::thread_scratch(int thread) {
  return thread_scratch_.data() + static_cast<size_t>(thread) * thread_stride_ +
         kFloatBytes;
}

}  // namespace mlx_flash::nn
