// SPDX-License-Identifier: MIT
#pragma once

// Blocks of a KV cache in 8 or 4 bits, and a block of any kind as floats.
//
// One part (keys or values) of kKvBlock positions of one layer:
//   codes  [kKvBlock][kv_heads][dim] of `bits`, two 4-bit codes to a byte, the
//          even one in the low half; a head's row is padded to whole bytes;
//   scales [kKvBlock][kv_heads][groups][2] float16: scale, bias.
// value = fma(code, scale, bias) in float32. Groups are consecutive values of
// one head of one position. Never allocates. Thread-compatible.

#include <cstddef>
#include <cstdint>

#include "base/weight_format.h"

namespace mlx_flash::kernels {

// Values of one scale: the largest of 64, 32, 16 that divides dim, else 16 with
// a shorter last group.
constexpr size_t kv_group(size_t dim) {
  return dim % 64 == 0 ? 64 : dim % 32 == 0 ? 32 : 16;
}
constexpr size_t kv_groups(size_t dim) {
  return (dim + kv_group(dim) - 1) / kv_group(dim);
}
// Bytes of the codes of one head of one position.
constexpr size_t kv_code_bytes(size_t dim, int bits) {
  return bits == 8 ? dim : (dim + 1) / 2;
}

// Bytes of one part of a block.
size_t kv_quant_bytes(size_t kv_heads, size_t dim, int bits);

// Quantises one part of a block. `rows` is [kKvBlock][kv_heads][dim] of
// `dtype` (f32, f16 or bf16), out kv_quant_bytes(). Values beyond what float16
// scales express are clamped; a group with a NaN or infinity yields NaN.
// The same bits on every machine.
void quantize_kv(const std::byte* rows,
                 DType dtype,
                 size_t kv_heads,
                 size_t dim,
                 int bits,
                 std::byte* out);

}  // namespace mlx_flash::kernels
