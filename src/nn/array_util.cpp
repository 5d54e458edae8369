// SPDX-License-Identifier: MIT
#include "nn/array_util.h"

#include <mlx/allocator.h>

#include <cstring>

#include "base/check.h"

namespace mlx_flash::nn {

mx::Dtype mlx_dtype(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return mx::float32;
    case DType::kF16:
      return mx::float16;
    case DType::kBF16:
      return mx::bfloat16;
    case DType::kU32:
      return mx::uint32;
    case DType::kU8:
    case DType::kF8E4M3:  // as mx.load has it
      return mx::uint8;
    case DType::kI8:
      return mx::int8;
    case DType::kI32:
      return mx::int32;
    case DType::kI64:
      return mx::int64;
  }
  return mx::float32;
}

mx::array new_array(const mx::Shape& shape, mx::Dtype dtype, std::byte** data) {
  mx::array out(shape, dtype, nullptr, {});
  out.set_data(mx::allocator::malloc(out.nbytes()));
  out.set_status(mx::array::Status::available);
  *data = out.data<std::byte>();
  return out;
}

mx::array array_from_bytes(std::span<const std::byte> bytes,
                           const mx::Shape& shape,
                           mx::Dtype dtype) {
  std::byte* data = nullptr;
  mx::array out = new_array(shape, dtype, &data);
  FLASH_CHECK(out.nbytes() == bytes.size());
  std::memcpy(data, bytes.data(), bytes.size());
  return out;
}

}  // namespace mlx_flash::nn
