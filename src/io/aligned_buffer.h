// SPDX-License-Identifier: MIT
#pragma once

// Memory for direct reads, which want addresses that are multiples of the
// device's block. For probes, bounces and tests; weights live in the Arena.
// Move-only. Thread-compatible.

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>

#include "base/check.h"

namespace mlx_flash {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // `bytes` is rounded up to `alignment`, a power of two.
  AlignedBuffer(size_t bytes, size_t alignment) {
    const size_t a = alignment < alignof(std::max_align_t)
                         ? alignof(std::max_align_t)
                         : alignment;
    size_ = (bytes + a - 1) / a * a;
    if (size_ == 0) size_ = a;
    data_.reset(static_cast<std::byte*>(std::aligned_alloc(a, size_)));
    FLASH_CHECK(data_ != nullptr);
  }

  std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }
  std::span<std::byte> span() const { return {data_.get(), size_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t size_ = 0;
};

}  // namespace mlx_flash
