// SPDX-License-Identifier: MIT
#include "nn/host_op.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>

#include <memory>
#include <stdexcept>

#include "base/check.h"

namespace mlx_flash::nn {
namespace {

class HostOp : public mx::Primitive {
 public:
  HostOp(mx::Stream stream, const char* op_name, HostFunction function)
      : mx::Primitive(stream),
        name_(op_name),
        function_(std::make_shared<HostFunction>(std::move(function))) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override {
    std::vector<const float*> in;
    in.reserve(inputs.size());
    for (const mx::array& input : inputs) {
      FLASH_CHECK(input.flags().row_contiguous);
      in.push_back(input.data<float>());
    }
    std::vector<float*> out;
    out.reserve(outputs.size());
    for (mx::array& output : outputs) {
      output.set_data(mx::allocator::malloc(output.nbytes()));
      out.push_back(output.data<float>());
    }
    // Raw pointers only: MLX itself keeps the buffers until the task has run.
    mx::cpu::get_command_encoder(stream()).dispatch(
        [function = function_, in = std::move(in), out = std::move(out)] {
          (*function)(in, out);
        });
  }

  void eval_gpu(const std::vector<mx::array>&,
                std::vector<mx::array>&) override {
    throw std::runtime_error("the fast kernels run on the CPU only");
  }

  const char* name() const override { return name_; }

 private:
  const char* name_;
  std::shared_ptr<HostFunction> function_;
};

}  // namespace

std::vector<mx::array> host_op(const char* name,
                               const std::vector<mx::array>& inputs,
                               const std::vector<mx::Shape>& output_shapes,
                               HostFunction function,
                               mx::Stream stream) {
  auto primitive = std::make_shared<HostOp>(stream, name, std::move(function));
  return mx::array::make_arrays(
      output_shapes,
      std::vector<mx::Dtype>(output_shapes.size(), mx::float32),
      primitive,
      inputs);
}

}  // namespace mlx_flash::nn
