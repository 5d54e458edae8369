// SPDX-License-Identifier: MIT

// The Python module mlx_flash._engine. Its annotations: _engine.pyi.

#include <malloc.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "base/memory.h"
#include "interrupts.h"
#include "kernels/vector_ops.h"
#include "ops.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace mlx_flash::python {
namespace {

PyObject* exception_of(StatusCode code) {
  switch (code) {
    case StatusCode::kInvalidInput:
    case StatusCode::kUnsupported:
      return PyExc_ValueError;
    case StatusCode::kExhausted:
      return PyExc_MemoryError;
    case StatusCode::kIoError:
      return PyExc_OSError;
    case StatusCode::kCancelled:
      return PyExc_KeyboardInterrupt;
    default:
      return PyExc_RuntimeError;
  }
}

// A Status as Python's exception of that kind.
void raise_if_error(const Status& status) {
  if (status.ok()) return;
  PyErr_SetString(exception_of(status.code()), status.message().c_str());
  throw nb::python_error();
}

// A task that was given up, where MLX's own functions evaluate: both modules
// share nanobind's list of translators. Python's handler of Ctrl-C has noted
// it, and raises it here.
void translate_cancellation(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const std::runtime_error& error) {
    const std::string_view what = error.what();
    if (what.find(kFailed) == std::string_view::npos) throw;
    if (what.find(kNoRoom) != std::string_view::npos) {
      PyErr_SetString(PyExc_MemoryError, error.what());
      return;
    }
    if (what.find(kInterrupted) == std::string_view::npos) throw;
    if (PyErr_CheckSignals() != 0) return;
    PyErr_SetString(PyExc_KeyboardInterrupt, error.what());
  }
}

template <typename T>
T value_or_raise(Result<T> result) {
  raise_if_error(result.status());
  return std::move(result).value();
}

// (file, offset, bytes of a row)
using Part = std::tuple<uint32_t, uint64_t, uint64_t>;

ScheduledMatrix scheduled(const std::string& name,
                          const std::vector<Part>& parts,
                          uint64_t rows,
                          bool every_pass) {
  if (parts.empty() || parts.size() > kTilePartsMax) {
    throw nb::value_error("a matrix has one to three parts");
  }
  ScheduledMatrix matrix;
  matrix.name = name;
  matrix.rows = rows;
  matrix.every_pass = every_pass;
  for (const auto& [file, offset, row_bytes] : parts) {
    matrix.parts[matrix.part_count++] = {file, offset, row_bytes};
  }
  return matrix;
}

DType float_dtype(const std::string& name) {
  if (name == "float32") return DType::kF32;
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  throw nb::value_error(("no kernels for " + name).c_str());
}

// `mode`: "dense" with a dtype, or MLX's quantisation modes.
WeightFormat weight_format(const std::string& mode,
                           int bits,
                           int group_size,
                           const std::string& dtype) {
  if (mode == "dense") return dense_format(float_dtype(dtype));
  if (mode == "affine") {
    return affine_format(bits, group_size, float_dtype(dtype));
  }
  if (mode == "mxfp4") return block_format(WeightKind::kMxfp4);
  if (mode == "mxfp8") return block_format(WeightKind::kMxfp8);
  if (mode == "nvfp4") return block_format(WeightKind::kNvfp4);
  throw nb::value_error(("no kernels for the mode " + mode).c_str());
}

// A Store and what Python knows of its tensors.
struct Engine {
  StorePtr store;
  std::shared_ptr<Expression::Leaves> leaves =
      std::make_shared<Expression::Leaves>();
};

// A parameter: its expression, made anew each time it is asked for.
struct Weight {
  StorePtr store;
  Expression expression;
  bool float32 = false;

  mx::array array() const {
    mx::array a = expression.instantiate(store);
    const bool cast = float32 && mx::issubdtype(a.dtype(), mx::floating);
    return cast && a.dtype() != mx::float32 ? mx::astype(a, mx::float32) : a;
  }
};

IoKind io_kind(const std::string& name) {
  if (name == "auto") return IoKind::kAuto;
  if (name == "uring") return IoKind::kUring;
  if (name == "threads") return IoKind::kThreads;
  throw nb::value_error(("no way to read: " + name).c_str());
}

ExpertPolicy policy(const std::string& name) {
  if (name == "lfu") return ExpertPolicy::kFrequency;
  if (name == "lru") return ExpertPolicy::kRecency;
  throw nb::value_error(("no eviction strategy: " + name).c_str());
}

Engine open_engine(const std::vector<std::string>& paths,
                   int threads,
                   int queue_depth,
                   bool read_ahead,
                   bool controller,
                   uint64_t tile_bytes,
                   const std::string& io,
                   double bytes_per_s,
                   const std::string& eviction) {
  Engine engine;
  engine.store = value_or_raise(Store::open(paths,
                                            {.threads = threads,
                                             .queue_depth = queue_depth,
                                             .read_ahead = read_ahead,
                                             .controller = controller,
                                             .tile_bytes = tile_bytes,
                                             .io = io_kind(io),
                                             .bytes_per_s = bytes_per_s,
                                             .policy = policy(eviction)}));
  return engine;
}

MatrixId add_tensor(Engine& engine,
                    const mx::array& a,
                    const std::string& name,
                    uint32_t file,
                    uint64_t offset,
                    bool every_pass) {
  const uint64_t last = a.ndim() > 1 ? static_cast<uint64_t>(a.shape(-1)) : 1;
  const uint64_t row = last * a.itemsize();
  const uint64_t rows = row == 0 ? 0 : a.nbytes() / row;
  const MatrixId id = engine.store->add(
      scheduled(name, {{file, offset, row}}, rows, every_pass));
  const auto known = engine.leaves->find(a.id());
  if (known == engine.leaves->end()) throw nb::value_error("no known leaf");
  known->second.leaf = Leaf{id, a.shape(), a.dtype()};
  return id;
}

// A small tensor, read now.
mx::array read_tensor(const Engine& engine,
                      const mx::array& like,
                      uint32_t file,
                      uint64_t offset) {
  mx::array out(like.shape(), like.dtype(), nullptr, {});
  out.set_data(mx::allocator::malloc(out.nbytes()));
  raise_if_error(
      engine.store->read(file, offset, {out.data<std::byte>(), out.nbytes()}));
  out.set_status(mx::array::Status::available);
  return out;
}

nb::dict plan_dict(const Store& store) {
  const Plan& plan = store.plan();
  nb::dict d;
  d["weights_bytes"] = store.weights_bytes();
  d["pass_bytes"] = plan.pass_bytes;
  d["ram_bytes"] = plan.ram_bytes;
  d["ram_min_bytes"] = plan.ram_min_bytes;
  d["pinned_bytes"] = plan.pinned_bytes;
  d["streamed_bytes"] = plan.streamed_bytes;
  d["ring_bytes"] = plan.ring_bytes;
  d["tables_bytes"] = store.tables_bytes();
  d["expert_bytes"] = plan.expert_bytes;
  d["expert_token_bytes"] = plan.expert_token_bytes;
  d["activation_bytes"] = plan.activation_bytes;
  d["runtime_bytes"] = plan.runtime_bytes;
  d["predicted_peak_bytes"] = plan.predicted_peak_bytes;
  return d;
}

nb::dict stats_dict(Store& store) {
  Store::Stats s;
  {
    nb::gil_scoped_release nogil;
    s = store.stats();
  }
  nb::dict d;
  d["passes"] = s.stream.passes;
  d["tiles_streamed"] = s.stream.tiles_streamed;
  d["tiles_pinned"] = s.stream.tiles_pinned;
  d["misses"] = s.stream.misses;
  d["bytes_read"] =
      s.stream.bytes_read + s.tables.bytes_read + s.experts.bytes_read;
  d["io_wait_s"] =
      s.stream.wait_seconds + s.tables.wait_seconds + s.experts.wait_seconds;
  d["compute_s"] = s.compute_seconds;
  d["table_rows"] = s.tables.rows;
  d["table_hits"] = s.tables.hits;
  d["expert_uses_bytes"] = s.experts.bytes;
  d["expert_hits_bytes"] = s.experts.hit_bytes;
  d["expert_bytes_read"] = s.experts.bytes_read;
  d["expert_evictions"] = s.experts.evictions;
  d["expert_bytes"] = s.experts_bytes;
  d["pinned_bytes"] = s.pinned_bytes;
  d["io"] = s.io;
  d["weight_arrays_bytes"] = s.arrays_bytes;
  d["weight_arrays_bytes_max"] = s.arrays_bytes_max;
  d["weight_arrays_made"] = s.arrays_made;
  d["peak_rss_bytes"] = s.peak_bytes;
  return d;
}

nb::dict start(Engine& engine, const Budget& budget) {
  Status status;
  {
    nb::gil_scoped_release nogil;
    status = engine.store->start(budget);
  }
  raise_if_error(status);
  return plan_dict(*engine.store);
}

void close(Engine& engine) {
  unwatch_interrupts(*engine.store);
  nb::gil_scoped_release nogil;
  engine.store->close();
}

MatrixId add_matrix(Engine& engine,
                    const std::string& name,
                    const std::vector<Part>& parts,
                    uint64_t rows,
                    uint64_t cols,
                    const WeightFormat& format,
                    bool every_pass) {
  ScheduledMatrix matrix = scheduled(name, parts, rows, every_pass);
  matrix.cols = cols;
  matrix.format = format;
  return engine.store->add(std::move(matrix));
}

TableId add_embedding(Engine& engine,
                      const std::string& name,
                      const std::vector<Part>& parts,
                      uint64_t rows,
                      uint64_t cols,
                      const WeightFormat& format) {
  ScheduledMatrix table = scheduled(name, parts, rows, false);
  table.cols = cols;
  table.format = format;
  return engine.store->add_table(std::move(table));
}

TableId add_table(Engine& engine,
                  const std::string& name,
                  const std::vector<Part>& parts,
                  uint64_t rows) {
  return engine.store->add_table(scheduled(name, parts, rows, false));
}

// `parts`: of each expert, as many. `format` none: for whole rows only.
ExpertTableId add_experts(Engine& engine,
                          const std::string& name,
                          const std::string& group,
                          const std::vector<std::vector<Part>>& parts,
                          uint32_t active,
                          uint64_t rows,
                          uint64_t cols,
                          const std::optional<WeightFormat>& format) {
  ExpertLayer layer;
  layer.name = name;
  layer.experts = static_cast<uint32_t>(parts.size());
  layer.active = std::clamp(active, 1u, std::max(layer.experts, 1u));
  ExpertMatrix& matrix = layer.matrices.emplace_back();
  matrix.rows = rows;
  matrix.cols = cols;
  if (format) matrix.format = *format;
  for (const std::vector<Part>& expert : parts) {
    const ScheduledMatrix one = scheduled(name, expert, rows, false);
    matrix.part_count = one.part_count;
    matrix.parts.push_back(one.parts);
  }
  return engine.store->add_experts(std::move(layer), group);
}

std::vector<ArrayType> types_of(const std::vector<mx::array>& arrays) {
  std::vector<ArrayType> types;
  types.reserve(arrays.size());
  for (const mx::array& a : arrays) types.push_back({a.shape(), a.dtype()});
  return types;
}

void know_leaf(Engine& engine, const mx::array& a) {
  const auto number = static_cast<uint32_t>(engine.leaves->size());
  engine.leaves->try_emplace(a.id(), Expression::Known{{}, number});
}

// Another array of a tensor that has been declared: of another thread.
void alias_leaf(Engine& engine, const mx::array& a, MatrixId id) {
  engine.leaves->insert_or_assign(
      a.id(), Expression::Known{Leaf{id, a.shape(), a.dtype()}, 0});
}

void forget_undeclared(Engine& engine) {
  std::erase_if(*engine.leaves,
                [](const auto& it) { return !it.second.leaf.has_value(); });
}

uint64_t minimum(const Engine& engine, const Budget& budget) {
  return value_or_raise(engine.store->minimum(budget));
}

void bind_declarations(nb::class_<Engine>& engine) {
  engine.def("know_leaf", &know_leaf)
      .def("alias_leaf", &alias_leaf)
      .def("forget_undeclared", &forget_undeclared)
      .def("leaves_of",
           [](const Engine& e, const mx::array& a) {
             return Expression(a, e.leaves).leaves();
           })
      .def("entries_of",
           [](const Engine& e, const mx::array& a) {
             std::vector<std::tuple<uint32_t, uint64_t>> found;
             for (const auto& entry : Expression(a, e.leaves).entries()) {
               found.emplace_back(entry.leaf, entry.offset);
             }
             return found;
           })
      .def("add_tensor", &add_tensor)
      .def("read_tensor", &read_tensor)
      .def("add_matrix", &add_matrix)
      .def("add_embedding", &add_embedding)
      .def("add_table", &add_table)
      .def("add_experts",
           &add_experts,
           "name"_a,
           "group"_a,
           "parts"_a,
           "active"_a,
           "rows"_a,
           "cols"_a = 0,
           "format"_a = nb::none())
      .def("weight", [](const Engine& e, const mx::array& a, bool float32) {
        return Weight{e.store, Expression(a, e.leaves), float32};
      });
}

void bind_engine(nb::module_& m) {
  nb::class_<WeightFormat>(m, "Format")
      .def(nb::new_(&weight_format))
      .def("accepts", [](const WeightFormat& format, uint64_t cols) {
        return format_accepts(format, cols);
      });
  nb::class_<Engine> engine(m, "Engine");
  engine
      .def(nb::new_(&open_engine),
           "paths"_a,
           "threads"_a = 0,
           "queue_depth"_a = 0,
           "read_ahead"_a = true,
           "controller"_a = true,
           "tile_bytes"_a = 0,
           "io"_a = "auto",
           "bytes_per_s"_a = 0.0,
           "eviction"_a = "lfu")
      .def("minimum", &minimum)
      .def("start", &start)
      .def("close", &close)
      .def("plan", [](const Engine& e) { return plan_dict(*e.store); })
      .def("stats", [](Engine& e) { return stats_dict(*e.store); })
      .def("threads", [](const Engine& e) { return e.store->threads(); })
      .def("interrupt", [](Engine& e) { e.store->interrupt(); })
      .def("watch_interrupts", [](Engine& e) { watch_interrupts(*e.store); })
      .def("begin_forward",
           [](Engine& e, uint32_t rows) {
             ensure_handler();
             begin_forward(*e.store, rows);
           })
      .def("end_forward", [](Engine&) { end_forward(); });
  bind_declarations(engine);
}

void bind_ops(nb::module_& m) {
  nb::class_<Weight>(m, "Weight").def("array", &Weight::array);
  m.def("chain", &chain);
  m.def(
      "linear",
      [](const Engine& e,
         MatrixId matrix,
         const mx::array& x,
         const std::optional<mx::array>& bias) {
        return linear(e.store, matrix, x, bias);
      },
      "engine"_a,
      "matrix"_a,
      "x"_a,
      "bias"_a.none());
  m.def("embed", [](const Engine& e, TableId table, const mx::array& ids) {
    return embed(e.store, table, ids);
  });
  m.def("experts",
        [](const Engine& e,
           ExpertTableId table,
           const mx::array& x,
           const mx::array& ids) { return experts(e.store, table, x, ids); });
  m.def("table_rows",
        [](const Engine& e,
           TableId table,
           const std::vector<mx::array>& like,
           const mx::array& ids) {
          return table_rows(e.store, table, types_of(like), ids);
        });
  m.def("expert_rows",
        [](const Engine& e,
           ExpertTableId table,
           const std::vector<mx::array>& like,
           const mx::array& ids) {
          return expert_rows(e.store, table, types_of(like), ids);
        });
}

void bind_memory(nb::module_& m) {
  nb::class_<Budget>(m, "Budget")
      .def(nb::init<>())
      .def_rw("ram", &Budget::ram)
      .def_rw("runtime", &Budget::runtime)
      .def_rw("decode", &Budget::decode)
      .def_rw("per_row", &Budget::per_row)
      .def_rw("experts", &Budget::experts)
      .def_rw("fixed", &Budget::fixed);
  m.def("available_ram", [] { return available_ram(); });
  m.def("resident_bytes",
        [] { return value_or_raise(process_memory()).resident_bytes; });
  m.def("peak_resident_bytes",
        [] { return value_or_raise(process_memory()).resident_peak_bytes; });
  m.def("return_free_memory", [] { return_free_memory(); });
  // Freed arrays go back to the system at once, instead of when glibc finds it
  // worth its while: it raises its threshold to the largest block ever freed.
  m.def("keep_no_free_memory", [] {
#ifdef __GLIBC__
    constexpr int kBytes = 256 * 1024;
    mallopt(M_MMAP_THRESHOLD, kBytes);
    mallopt(M_TRIM_THRESHOLD, 4 * kBytes);
#endif
  });
}

}  // namespace
}  // namespace mlx_flash::python

NB_MODULE(_engine, m) {
  namespace py = mlx_flash::python;
  nb::module_::import_("mlx.core");  // its types, and the one libmlx
  nb::register_exception_translator(&py::translate_cancellation);
  m.attr("mlx_version") = mlx_flash::mx::version();
  m.attr("built_for") = FLASH_MLX_VERSION;
  m.def("supported", &mlx_flash::kernels::supported);
  py::bind_memory(m);
  py::bind_engine(m);
  py::bind_ops(m);
}
