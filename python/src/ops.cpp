// SPDX-License-Identifier: MIT
#include "ops.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/primitives.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>

namespace mlx_flash::python {
namespace {

struct Forward {
  Pass pass;
  bool open = false;
  std::optional<mx::array> last;
};

Forward& forward() {
  static thread_local Forward state;
  return state;
}

// Of an operation made now; outside of a forward each is one of its own.
Pass pass_of(Store& store) {
  const Forward& state = forward();
  return state.open ? state.pass : Pass{store.begin_epoch(), 0};
}

// Tasks run on the CPU; on a GPU its streams wait for them.
mx::Stream task_stream() {
  const mx::Device device = mx::default_device();
  return mx::default_stream(
      device == mx::Device::cpu ? device : mx::Device(mx::Device::cpu));
}

// A task: raw pointers to inputs and outputs, evaluated in order.
using Task =
    std::function<Status(const std::vector<const void*>& inputs, void* out)>;

class StoreOp : public mx::Primitive {
 public:
  StoreOp(mx::Stream stream,
          const char* op_name,
          StorePtr store,
          uint64_t epoch,
          bool weight,
          Task task)
      : mx::Primitive(stream),
        name_(op_name),
        store_(std::move(store)),
        epoch_(epoch),
        weight_(weight),
        task_(std::move(task)) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override {
    // Of a forward that was interrupted nothing more is put in the queue: MLX
    // runs what is in it to the end.
    if (store_->cancelled(epoch_)) {
      throw std::runtime_error(std::string(kFailed) +
                               std::string(kInterrupted));
    }
    std::vector<const void*> in;
    in.reserve(inputs.size());
    for (const mx::array& input : inputs) {
      in.push_back(input.data<std::byte>());
    }
    mx::array& out = outputs[0];
    // Whether the task of a weight has begun to write. MLX allocates ahead of
    // that: until then it is address space.
    const auto filled =
        weight_ ? std::make_shared<std::atomic<bool>>(false) : nullptr;
    allocate(out, filled);
    mx::cpu::get_command_encoder(stream()).dispatch([store = store_,
                                                     task = task_,
                                                     in = std::move(in),
                                                     to = out.data<std::byte>(),
                                                     bytes = out.nbytes(),
                                                     filled] {
      if (filled) {
        *filled = true;
        store->count_array(static_cast<int64_t>(bytes));
      }
      const Status status = task(in, to);
      if (status.ok()) return;
      // What runs before the exception is seen must not index by garbage.
      if (!filled) std::memset(to, 0, bytes);
      throw std::runtime_error(std::string(kFailed) + status.message());
    });
  }

  void eval_gpu(const std::vector<mx::array>&,
                std::vector<mx::array>&) override {
    throw std::runtime_error("mlx_flash: weights are read on the CPU");
  }

  const char* name() const override { return name_; }

 private:
  void allocate(mx::array& out,
                const std::shared_ptr<std::atomic<bool>>& filled) const {
    if (!filled) {
      out.set_data(mx::allocator::malloc(out.nbytes()));
      return;
    }
    const auto bytes = static_cast<int64_t>(out.nbytes());
    out.set_data({mx::allocator::allocator().malloc(out.nbytes()),
                  [store = store_, filled, bytes](mx::allocator::Buffer b) {
                    mx::allocator::allocator().free(b);
                    if (*filled) store->count_array(-bytes);
                  }});
  }

  const char* name_;
  StorePtr store_;
  uint64_t epoch_;
  bool weight_;
  Task task_;
};

mx::array node(const char* name,
               const StorePtr& store,
               bool weight,
               const mx::Shape& shape,
               mx::Dtype dtype,
               std::vector<mx::array> inputs,
               const Pass& pass,
               Task task) {
  const Forward& state = forward();
  if (state.open && state.last) inputs.push_back(*state.last);
  return mx::array(
      shape,
      dtype,
      std::make_shared<StoreOp>(
          task_stream(), name, store, pass.epoch, weight, std::move(task)),
      std::move(inputs));
}

mx::array product(mx::array y) {
  chain(y);
  return y;
}

mx::array float_rows(const mx::array& x) {
  return mx::contiguous(x.dtype() == mx::float32 ? x
                                                 : mx::astype(x, mx::float32));
}

mx::array index_rows(const mx::array& ids) {
  return mx::contiguous(mx::flatten(
      ids.dtype() == mx::uint32 ? ids : mx::astype(ids, mx::uint32)));
}

std::span<const uint32_t> ids_at(const void* data, size_t n) {
  return {static_cast<const uint32_t*>(data), n};
}

}  // namespace

void begin_forward(Store& store, uint32_t rows) {
  Forward& state = forward();
  state.pass = {store.begin_epoch(), std::max(rows, 1u)};
  state.open = true;
  state.last.reset();
}

void end_forward() {
  Forward& state = forward();
  state.open = false;
  state.last.reset();
}

void chain(const mx::array& product) {
  Forward& state = forward();
  if (state.open) state.last = product;
}

mx::array tensor(const StorePtr& store, const Leaf& leaf) {
  const Pass pass = pass_of(*store);
  Store* s = store.get();
  const MatrixId id = leaf.matrix;
  return node("FlashTensor",
              store,
              true,
              leaf.shape,
              leaf.dtype,
              {},
              pass,
              [s, id, pass](const auto&, void* out) {
                return s->fill(id, static_cast<std::byte*>(out), pass);
              });
}

mx::array tensor_rows(const StorePtr& store,
                      TableId table,
                      const mx::Shape& shape,
                      mx::Dtype dtype,
                      const mx::array& ids) {
  const mx::array rows = index_rows(ids);
  const Pass pass = pass_of(*store);
  Store* s = store.get();
  return node(
      "FlashRows",
      store,
      true,
      shape,
      dtype,
      {rows},
      pass,
      [s, table, n = rows.size(), pass](const auto& in, void* out) {
        return s->fill_rows(
            table, ids_at(in[0], n), static_cast<std::byte*>(out), pass);
      });
}

mx::array linear(const StorePtr& store,
                 MatrixId matrix,
                 const mx::array& x,
                 const std::optional<mx::array>& bias) {
  const mx::array input = float_rows(x);
  const ScheduledMatrix& m = store->matrix(matrix);
  if (x.ndim() == 0 || static_cast<uint64_t>(x.shape(-1)) != m.cols) {
    throw std::invalid_argument(m.name + ": the input has the wrong width");
  }
  mx::Shape shape = x.shape();
  shape.back() = static_cast<int>(m.rows);
  const size_t rows = x.size() / m.cols;
  const Pass pass = pass_of(*store);
  Store* s = store.get();
  const mx::array y =
      node("FlashLinear",
           store,
           false,
           shape,
           mx::float32,
           {input},
           pass,
           [s, matrix, rows, pass](const auto& in, void* out) {
             return s->multiply(matrix,
                                static_cast<const float*>(in[0]),
                                rows,
                                static_cast<float*>(out),
                                pass);
           });
  return product(bias ? mx::add(y, *bias) : y);
}

mx::array embed(const StorePtr& store, TableId table, const mx::array& ids) {
  const mx::array rows = index_rows(ids);
  mx::Shape shape = ids.shape();
  shape.push_back(static_cast<int>(store->table(table).cols));
  const Pass pass = pass_of(*store);
  Store* s = store.get();
  return product(
      node("FlashEmbedding",
           store,
           false,
           shape,
           mx::float32,
           {rows},
           pass,
           [s, table, n = rows.size(), pass](const auto& in, void* out) {
             return s->embed(
                 table, ids_at(in[0], n), static_cast<float*>(out), pass);
           }));
}

mx::array experts(const StorePtr& store,
                  TableId table,
                  const ExpertShape& shape,
                  const mx::array& x,
                  const mx::array& ids) {
  if (x.ndim() < 2 || x.shape(-1) != static_cast<int>(shape.cols)) {
    throw std::invalid_argument(store->table(table).name +
                                ": the input has the wrong shape");
  }
  // Which rows of x go with which id: numbers broadcast like x itself.
  const mx::Shape batch(x.shape().begin(), x.shape().end() - 2);
  const int m = x.shape(-2);
  int count = 1;
  for (const int extent : batch) count *= extent;
  const mx::array numbers =
      mx::reshape(mx::arange(0, count, mx::uint32), batch);
  const std::vector<mx::array> pairs = mx::broadcast_arrays({numbers, ids});
  mx::Shape out_shape = pairs[1].shape();
  out_shape.push_back(m);
  out_shape.push_back(static_cast<int>(shape.rows));
  const mx::array input = float_rows(x);
  const mx::array rows = index_rows(pairs[0]);
  const mx::array wanted = index_rows(pairs[1]);
  const Pass pass = pass_of(*store);
  Store* s = store.get();
  return product(node(
      "FlashExperts",
      store,
      false,
      out_shape,
      mx::float32,
      {input, rows, wanted},
      pass,
      [s, table, shape, n = rows.size(), m, pass](const auto& in, void* out) {
        const auto x_rows = ids_at(in[1], n);
        const auto expert_ids = ids_at(in[2], n);
        const auto* from = static_cast<const float*>(in[0]);
        auto* to = static_cast<float*>(out);
        if (m == 1) {
          return s->multiply_experts(
              table, shape, from, x_rows, expert_ids, to, pass);
        }
        std::vector<uint32_t> all_rows;
        std::vector<uint32_t> all_ids;
        for (size_t i = 0; i < n; ++i) {
          for (uint32_t j = 0; j < static_cast<uint32_t>(m); ++j) {
            all_rows.push_back(x_rows[i] * static_cast<uint32_t>(m) + j);
            all_ids.push_back(expert_ids[i]);
          }
        }
        return s->multiply_experts(
            table, shape, from, all_rows, all_ids, to, pass);
      }));
}

// --- Expressions ------------------------------------------------------------

Expression::Expression(mx::array root, std::shared_ptr<const Leaves> leaves)
    : root_(std::move(root)), leaves_(std::move(leaves)) {}

namespace {

class Builder {
 public:
  Builder(const StorePtr& store, const Expression::Leaves& leaves)
      : store_(store), leaves_(leaves) {}

  mx::array build(const mx::array& a) {
    if (const auto known = built_.find(a.id()); known != built_.end()) {
      return known->second;
    }
    if (const auto leaf = leaves_.find(a.id()); leaf != leaves_.end()) {
      if (!leaf->second.leaf) {
        throw std::logic_error("mlx_flash: a tensor that was not declared");
      }
      return built_.emplace(a.id(), tensor(store_, *leaf->second.leaf))
          .first->second;
    }
    if (!a.has_primitive()) return a;  // in memory
    std::vector<mx::array> inputs;
    inputs.reserve(a.inputs().size());
    for (const mx::array& input : a.inputs()) inputs.push_back(build(input));
    if (a.siblings().empty()) {
      mx::array made(a.shape(), a.dtype(), a.primitive_ptr(), inputs);
      return built_.emplace(a.id(), std::move(made)).first->second;
    }
    const std::vector<mx::array> outputs = a.outputs();
    std::vector<mx::Shape> shapes;
    std::vector<mx::Dtype> dtypes;
    for (const mx::array& output : outputs) {
      shapes.push_back(output.shape());
      dtypes.push_back(output.dtype());
    }
    const auto made =
        mx::array::make_arrays(shapes, dtypes, a.primitive_ptr(), inputs);
    for (size_t i = 0; i < made.size(); ++i) {
      built_.emplace(outputs[i].id(), made[i]);
    }
    return built_.at(a.id());
  }

 private:
  const StorePtr& store_;
  const Expression::Leaves& leaves_;
  std::unordered_map<std::uintptr_t, mx::array> built_;
};

}  // namespace

mx::array Expression::instantiate(const StorePtr& store) const {
  return Builder(store, *leaves_).build(root_);
}

std::vector<uint32_t> Expression::leaves() const {
  std::vector<uint32_t> found;
  std::unordered_set<std::uintptr_t> seen;
  std::vector<mx::array> open{root_};
  while (!open.empty()) {
    const mx::array a = open.back();
    open.pop_back();
    if (!seen.insert(a.id()).second) continue;
    if (const auto leaf = leaves_->find(a.id()); leaf != leaves_->end()) {
      found.push_back(leaf->second.number);
      continue;
    }
    if (!a.has_primitive()) continue;
    for (const mx::array& input : a.inputs()) open.push_back(input);
  }
  return found;
}

}  // namespace mlx_flash::python
