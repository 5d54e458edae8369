// SPDX-License-Identifier: MIT
#include "nn/context.h"

#include "base/check.h"

namespace mlx_flash::nn {
namespace {

constexpr size_t kCacheLine = 64;

size_t thread_stride(size_t bytes) {
  return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
}

}  // namespace

void Context::reserve_scratch(size_t floats,
                              size_t prepared_bytes,
                              int threads,
                              size_t bytes_per_thread) {
  scratch_ = AlignedBuffer(floats * sizeof(float), kCacheLine);
  prepared_ = AlignedBuffer(prepared_bytes, kCacheLine);
  thread_scratch_ = AlignedBuffer(
      thread_stride(bytes_per_thread) * static_cast<size_t>(threads),
      kCacheLine);
}

float* Context::scratch_floats(size_t n) {
  FLASH_CHECK(n * sizeof(float) <= scratch_.size());
  return reinterpret_cast<float*>(scratch_.data());
}

std::byte* Context::prepared(size_t bytes) {
  FLASH_CHECK(bytes <= prepared_.size());
  return prepared_.data();
}

std::byte* Context::thread_scratch(int thread, size_t bytes_per_thread) {
  return thread_scratch_.data() +
         static_cast<size_t>(thread) * thread_stride(bytes_per_thread);
}

}  // namespace mlx_flash::nn
