// SPDX-License-Identifier: MIT
#include "nn/moe.h"

#include "nn/host_op.h"

namespace mlx_flash::nn {

mx::array add_experts(Context& context,
                      const MoeBlock& block,
                      const MoeBlock* next,
                      const mx::array& x) {
  if (context.stock) return stock::add_experts(context, block, x);
  const auto rows = static_cast<size_t>(x.shape(0));
  return host_op(
      "Experts",
      {x},
      {x.shape()},
      [&context, &block, next, rows](std::span<const float* const> in,
                                     std::span<float* const> out) {
        fast::add_experts(context, block, next, in[0], rows, out[0]);
      },
      context.mx_stream)[0];
}

}  // namespace mlx_flash::nn
