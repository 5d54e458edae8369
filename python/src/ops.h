// SPDX-License-Identifier: MIT
#pragma once

// The weights of a Store as nodes of MLX's graph.
//
// Each node's work is a task on MLX's stream thread: it waits for bytes from
// the disk there, in C++, without Python's lock. Nodes made between
// begin_forward() and end_forward() of a thread are chained: each has the last
// product as a hidden input, so that MLX runs them in the order in which the
// model's Python code called them, and a weight is not made before the one in
// front of it has been used. MLX evaluates breadth-first otherwise, and would
// fill memory with weights that wait for their turn.
//
// A weight array is freed when its last user has run: nothing here holds one.
// Failures of the store are exceptions from the task; MLX hands them to
// whoever evaluates.
//
// Nodes may be built on any thread, each with a chain of its own.

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "nn/mlx.h"
#include "store.h"

namespace mlx_flash::python {

using StorePtr = std::shared_ptr<Store>;

// What tasks throw begins so. MLX hands on a message, not the exception.
inline constexpr std::string_view kFailed = "mlx_flash: ";
inline constexpr std::string_view kInterrupted = "interrupted";

// --- The forward under way on this thread -----------------------------------

// `rows`: tokens of the forward, for the budget.
void begin_forward(Store& store, uint32_t rows);
void end_forward();
// The next node comes after `product`.
void chain(const mx::array& product);

// --- Nodes ------------------------------------------------------------------

// A tensor of the files, as it lies there.
struct Leaf {
  MatrixId matrix = 0;
  mx::Shape shape;
  mx::Dtype dtype = mx::float32;
};

struct ArrayType {
  mx::Shape shape;
  mx::Dtype dtype = mx::float32;
};

mx::array tensor(const StorePtr& store, const Leaf& leaf);

// The parts of a table, whole arrays of which only rows `ids` (of the first
// axis) are there: the others are memory that nobody has written, which costs
// address space only. `parts` are as the table has them.
std::vector<mx::array> table_rows(const StorePtr& store,
                                  TableId table,
                                  const std::vector<ArrayType>& parts,
                                  const mx::array& ids);
// Likewise of experts.
std::vector<mx::array> expert_rows(const StorePtr& store,
                                   ExpertTableId table,
                                   const std::vector<ArrayType>& parts,
                                   const mx::array& ids);

// x W^T (+ bias), float32, by our kernels.
mx::array linear(const StorePtr& store,
                 MatrixId matrix,
                 const mx::array& x,
                 const std::optional<mx::array>& bias);

// Rows `ids` of an embedding, float32.
mx::array embed(const StorePtr& store, TableId table, const mx::array& ids);

// For each of `ids` (any shape): the product of its expert with the row of x
// that broadcasts to it, as mx.gather_mm does it. x [..., 1, cols] or
// [..., m, cols]; out [*broadcast(x batch, ids), m, rows].
mx::array experts(const StorePtr& store,
                  ExpertTableId table,
                  const mx::array& x,
                  const mx::array& ids);

// --- Expressions ------------------------------------------------------------

// What sanitize() made of tensors that were never read: a graph whose leaves
// are tensors of the files. instantiate() builds it anew, with the same
// operations over new leaves, so that evaluating it keeps nothing.
class Expression {
 public:
  struct Known {
    std::optional<Leaf> leaf;  // none: not declared
    uint32_t number = 0;       // in order of becoming known
  };
  using Leaves = std::unordered_map<std::uintptr_t, Known>;

  // `leaves`: by mx::array::id() of the lazily loaded arrays, which must stay
  // alive.
  Expression(mx::array root, std::shared_ptr<const Leaves> leaves);

  mx::array instantiate(const StorePtr& store) const;
  // Numbers of the leaves it reads, each once; none where all is in memory.
  std::vector<uint32_t> leaves() const;

  // Where each entry of the first axis lies, if each is a stretch of one leaf:
  // leaves stacked one on the other, or rows of the entries of one. Empty where
  // it is anything else.
  struct Entry {
    uint32_t leaf = 0;    // its number
    uint64_t offset = 0;  // in its bytes
  };
  std::vector<Entry> entries() const;

 private:
  mx::array root_;
  std::shared_ptr<const Leaves> leaves_;
};

}  // namespace mlx_flash::python
