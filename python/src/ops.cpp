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
using Inputs = std::vector<const void*>;
using Outputs = std::vector<std::byte*>;
using Task = std::function<Status(const Inputs& inputs, const Outputs& out)>;

// The memory of a weight is counted from when its task begins to write: MLX
// allocates ahead of that, and until then it is address space.
using Filled = std::shared_ptr<std::atomic<bool>>;

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
    // Of a forward that was given up nothing more is put in the queue: MLX
    // runs what is in it to the end.
    if (store_->cancelled(epoch_)) {
      throw std::runtime_error(std::string(kFailed) +
                               store_->cancellation(epoch_).message());
    }
    Inputs in;
    for (const mx::array& input : inputs) {
      in.push_back(input.data<std::byte>());
    }
    const Filled filled =
        weight_ ? std::make_shared<std::atomic<bool>>(false) : nullptr;
    Outputs to;
    std::vector<size_t> bytes;
    for (mx::array& out : outputs) {
      allocate(out, filled);
      to.push_back(out.data<std::byte>());
      bytes.push_back(out.nbytes());
    }
    mx::cpu::get_command_encoder(stream()).dispatch([store = store_,
                                                     task = task_,
                                                     in = std::move(in),
                                                     to = std::move(to),
                                                     bytes = std::move(bytes),
                                                     filled] {
      if (filled) {
        *filled = true;
        for (const size_t n : bytes) {
          store->count_array(static_cast<int64_t>(n));
        }
      }
      const Status status = task(in, to);
      if (status.ok()) return;
      // What runs before the exception is seen must not index by garbage.
      for (size_t i = 0; i < to.size() && !filled; ++i) {
        std::memset(to[i], 0, bytes[i]);
      }
      throw std::runtime_error(std::string(kFailed) + status.message());
    });
  }

  void eval_gpu(const std::vector<mx::array>&,
                std::vector<mx::array>&) override {
    throw std::runtime_error("mlx_flash: weights are read on the CPU");
  }

  const char* name() const override { return name_; }

 private:
  void allocate(mx::array& out, const Filled& filled) const {
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

std::vector<mx::array> nodes(const char* name,
                             const StorePtr& store,
                             bool weight,
                             const std::vector<ArrayType>& types,
                             std::vector<mx::array> inputs,
                             const Pass& pass,
                             Task task) {
  const Forward& state = forward();
  if (state.open && state.last) inputs.push_back(*state.last);
  auto op = std::make_shared<StoreOp>(
      task_stream(), name, store, pass.epoch, weight, std::move(task));
  if (types.size() == 1) {
    return {mx::array(types[0].shape, types[0].dtype, op, std::move(inputs))};
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (const ArrayType& type : types) {
    shapes.push_back(type.shape);
    dtypes.push_back(type.dtype);
  }
  return mx::array::make_arrays(shapes, dtypes, op, inputs);
}

// A result in float32.
mx::array node(const char* name,
               const StorePtr& store,
               const mx::Shape& shape,
               std::vector<mx::array> inputs,
               const Pass& pass,
               Task task) {
  return nodes(name,
               store,
               false,
               {{shape, mx::float32}},
               std::move(inputs),
               pass,
               std::move(task))[0];
}

float* floats(std::byte* data) {
  return reinterpret_cast<float*>(data);
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
  return nodes("FlashTensor",
               store,
               true,
               {{leaf.shape, leaf.dtype}},
               {},
               pass,
               [s, id, pass](const auto&, const auto& out) {
                 return s->fill(id, out[0], pass);
               })[0];
}

namespace {

// Arrays of their full shape of which `fill` writes the rows that `ids` name.
template <class Fill>
std::vector<mx::array> rows_of(const char* name,
                               const StorePtr& store,
                               const std::vector<ArrayType>& parts,
                               const mx::array& ids,
                               const Fill& fill) {
  const mx::array rows = index_rows(ids);
  const Pass pass = pass_of(*store);
  return nodes(name,
               store,
               true,
               parts,
               {rows},
               pass,
               [fill, n = rows.size(), pass](const auto& in, const auto& out) {
                 return fill(ids_at(in[0], n), out, pass);
               });
}

}  // namespace

std::vector<mx::array> table_rows(const StorePtr& store,
                                  TableId table,
                                  const std::vector<ArrayType>& parts,
                                  const mx::array& ids) {
  Store* s = store.get();
  return rows_of("FlashRows",
                 store,
                 parts,
                 ids,
                 [s, table](auto rows, const auto& out, const Pass& pass) {
                   return s->fill_rows(table, rows, out, pass);
                 });
}

std::vector<mx::array> expert_rows(const StorePtr& store,
                                   ExpertTableId table,
                                   const std::vector<ArrayType>& parts,
                                   const mx::array& ids) {
  Store* s = store.get();
  return rows_of("FlashExpertRows",
                 store,
                 parts,
                 ids,
                 [s, table](auto rows, const auto& out, const Pass& pass) {
                   return s->fill_experts(table, rows, out, pass);
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
           shape,
           {input},
           pass,
           [s, matrix, rows, pass](const auto& in, const auto& out) {
             return s->multiply(matrix,
                                static_cast<const float*>(in[0]),
                                rows,
                                floats(out[0]),
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
           shape,
           {rows},
           pass,
           [s, table, n = rows.size(), pass](const auto& in, const auto& out) {
             return s->embed(table, ids_at(in[0], n), floats(out[0]), pass);
           }));
}

mx::array experts(const StorePtr& store,
                  ExpertTableId table,
                  const mx::array& x,
                  const mx::array& ids) {
  const ExpertMatrix& matrix = store->expert_matrix(table);
  if (x.ndim() < 2 || x.shape(-1) != static_cast<int>(matrix.cols)) {
    throw std::invalid_argument(store->expert_name(table) +
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
  out_shape.push_back(static_cast<int>(matrix.rows));
  const mx::array input = float_rows(x);
  const mx::array rows = index_rows(pairs[0]);
  const mx::array wanted = index_rows(pairs[1]);
  const Pass pass = pass_of(*store);
  Store* s = store.get();
  return product(node(
      "FlashExperts",
      store,
      out_shape,
      {input, rows, wanted},
      pass,
      [s, table, n = rows.size(), m, pass](const auto& in, const auto& out) {
        const auto x_rows = ids_at(in[1], n);
        const auto expert_ids = ids_at(in[2], n);
        const auto* from = static_cast<const float*>(in[0]);
        float* to = floats(out[0]);
        if (m == 1) {
          return s->multiply_experts(table, from, x_rows, expert_ids, to, pass);
        }
        std::vector<uint32_t> all_rows;
        std::vector<uint32_t> all_ids;
        for (size_t i = 0; i < n; ++i) {
          for (uint32_t j = 0; j < static_cast<uint32_t>(m); ++j) {
            all_rows.push_back(x_rows[i] * static_cast<uint32_t>(m) + j);
            all_ids.push_back(expert_ids[i]);
          }
        }
        return s->multiply_experts(table, from, all_rows, all_ids, to, pass);
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

namespace {

// Follows what sanitize() did to stacked tensors, as long as every entry of the
// first axis stays a stretch of one leaf.
class EntryFinder {
 public:
  using Entries = std::vector<Expression::Entry>;

  explicit EntryFinder(const Expression::Leaves& leaves) : leaves_(leaves) {}

  // Empty: no.
  Entries of(const mx::array& a) const {
    if (a.ndim() < 2 || a.shape(0) == 0) return {};
    if (const auto leaf = leaves_.find(a.id()); leaf != leaves_.end()) {
      Entries entries;
      const auto count = static_cast<uint64_t>(a.shape(0));
      entries.reserve(count);
      for (uint64_t i = 0; i < count; ++i) {
        entries.push_back({leaf->second.number, entry_bytes(a) * i});
      }
      return entries;
    }
    if (!a.has_primitive()) return {};
    const mx::Primitive& p = a.primitive();
    const std::string_view op = p.name();
    const auto& in = a.inputs();
    if (op == "Concatenate") {
      return static_cast<const mx::Concatenate&>(p).state() == 0 ? joined(in)
                                                                 : Entries();
    }
    if (op == "ExpandDims") return expanded(a);
    if (op == "Contiguous" && in[0].shape() == a.shape()) return of(in[0]);
    if (op == "Slice") {
      const auto [begin, end, strides] =
          static_cast<const mx::Slice&>(p).state();
      for (const auto stride : strides) {
        if (stride != 1) return {};
      }
      return rows_from(in[0], a, begin);
    }
    if (op == "Split") return split(a);
    return {};
  }

 private:
  static uint64_t entry_bytes(const mx::array& a) {
    return a.nbytes() / static_cast<uint64_t>(a.shape(0));
  }

  Entries joined(const std::vector<mx::array>& parts) const {
    Entries all;
    for (const mx::array& part : parts) {
      const Entries entries = of(part);
      if (entries.empty()) return {};
      all.insert(all.end(), entries.begin(), entries.end());
    }
    return all;
  }

  // A leaf as one entry.
  Entries expanded(const mx::array& a) const {
    const mx::array& whole = a.inputs()[0];
    const auto leaf = leaves_.find(whole.id());
    if (a.shape(0) != 1 || a.ndim() != whole.ndim() + 1 ||
        leaf == leaves_.end()) {
      return {};
    }
    return {{leaf->second.number, 0}};
  }

  // `a` is `from` from `begin` on: the same entries, of each some rows.
  Entries rows_from(const mx::array& from,
                    const mx::array& a,
                    const mx::Shape& begin) const {
    for (int axis = 0; axis < static_cast<int>(from.ndim()); ++axis) {
      if (axis != 1 && from.shape(axis) != a.shape(axis)) return {};
    }
    Entries entries = of(from);
    const uint64_t row =
        from.shape(1) == 0
            ? 0
            : entry_bytes(from) / static_cast<uint64_t>(from.shape(1));
    for (Expression::Entry& entry : entries) {
      entry.offset += static_cast<uint64_t>(begin[1]) * row;
    }
    return entries;
  }

  Entries split(const mx::array& a) const {
    const auto& [indices, axis] =
        static_cast<const mx::Split&>(a.primitive()).state();
    if (axis != 1) return {};
    const std::vector<mx::array> outputs = a.outputs();
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].id() != a.id()) continue;
      mx::Shape begin(a.ndim(), 0);
      if (i > 0) begin[1] = indices[i - 1];
      return rows_from(a.inputs()[0], a, begin);
    }
    return {};
  }

  const Expression::Leaves& leaves_;
};

}  // namespace

std::vector<Expression::Entry> Expression::entries() const {
  return EntryFinder(*leaves_).of(root_);
}

}  // namespace mlx_flash::python
