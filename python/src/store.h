// SPDX-License-Identifier: MIT
#pragma once

// The weights of one model for Python: files, weight stream, row tables,
// kernels, and the budget they share.
//
// Python declares what there is (tensors as they lie in the files, matrices of
// several parts, tables read by the row, experts), then start() plans and
// reading begins. After that only tasks on MLX's stream threads use it (ops.h),
// one at a time, under `mutex_`; no function here touches Python. Order,
// prediction and reading ahead are the TileStream's (residency/tile_stream.h).
//
// Declaring and start() belong to one thread. Everything else is thread-safe.
// Failures are Status values; ops.h turns them into exceptions, which is how
// MLX reports them.

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "expert_tables.h"
#include "io/file.h"
#include "io/read_queue.h"
#include "memory_guard.h"
#include "nn/context.h"
#include "pass_memory.h"
#include "residency/arena.h"
#include "residency/plan.h"
#include "residency/row_reader.h"
#include "residency/schedule.h"
#include "residency/tile_stream.h"
#include "residency/weight_budget.h"
#include "store_types.h"

namespace mlx_flash::python {

using TableId = uint32_t;

class Store {
 public:
  using Stats = StoreStats;

  static Result<std::shared_ptr<Store>> open(
      const std::vector<std::string>& paths, const StoreOptions& options);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // --- Declaring -------------------------------------------------------------

  // Returns its id. Every part has `rows` rows. `every_pass`: expected in each
  // pass, in order of declaration.
  MatrixId add(ScheduledMatrix matrix);
  // A matrix read by the row: an embedding.
  TableId add_table(ScheduledMatrix table);
  // One matrix of the experts of a layer; `group` as ExpertTables has it.
  ExpertTableId add_experts(ExpertLayer layer, const std::string& group) {
    return experts_.add(std::move(layer), group);
  }

  // The smallest budget.ram that works with the rest of `budget`.
  Result<uint64_t> minimum(const Budget& budget) const;
  Status start(const Budget& budget);
  const Plan& plan() const { return plan_; }
  uint64_t weights_bytes() const;
  uint64_t tables_bytes() const;
  // Bytes of a small tensor, read at once.
  Status read(uint32_t file, uint64_t offset, std::span<std::byte> out) const;

  // --- From tasks ------------------------------------------------------------

  // The whole of a one-part matrix.
  Status fill(MatrixId id, std::byte* out, const Pass& pass);
  // Rows `ids` of a table, each part to where it lies in the whole of `out`.
  Status fill_rows(TableId id,
                   std::span<const uint32_t> ids,
                   std::span<std::byte* const> out,
                   const Pass& pass);
  // Experts `ids`, likewise.
  Status fill_experts(ExpertTableId id,
                      std::span<const uint32_t> ids,
                      std::span<std::byte* const> out,
                      const Pass& pass);
  // y [rows, matrix rows] = x [rows, cols] * W^T.
  Status multiply(
      MatrixId id, const float* x, size_t rows, float* y, const Pass& pass);
  // Rows of an embedding as float32.
  Status embed(TableId id,
               std::span<const uint32_t> ids,
               float* out,
               const Pass& pass);
  // y[i] = x[x_rows[i]] * W[experts[i]]^T
  Status multiply_experts(ExpertTableId id,
                          const float* x,
                          std::span<const uint32_t> x_rows,
                          std::span<const uint32_t> experts,
                          float* y,
                          const Pass& pass);

  // --- From anywhere ---------------------------------------------------------

  // The epoch of operations made from now on.
  uint64_t begin_epoch() { return ++epoch_; }
  uint64_t epoch() const { return epoch_; }
  // Tasks of all operations made so far end as soon as they can, with
  // kCancelled. Async-signal-safe.
  void interrupt() { cancelled_.store(epoch_.load()); }
  bool cancelled(uint64_t epoch) const { return epoch <= cancelled_.load(); }
  // kCancelled, or kExhausted where memory was the reason.
  Status cancellation(uint64_t epoch) const;
  bool closed() const { return closed_; }
  // Gives all memory back; tasks that come later fail.
  void close();
  Stats stats();
  int threads() const { return pool_ ? pool_->threads() : 0; }

  void count_array(int64_t bytes);

  const ScheduledMatrix& matrix(MatrixId id) const { return matrices_[id]; }
  const ScheduledMatrix& table(TableId id) const { return tables_[id].matrix; }
  const ExpertMatrix& expert_matrix(ExpertTableId id) const {
    return experts_.layer(id).matrices[0];
  }
  const std::string& expert_name(ExpertTableId id) const {
    return experts_.layer(id).name;
  }

 private:
  struct Table {
    ScheduledMatrix matrix;
    std::unique_ptr<RowReader> reader;
  };

  Store() = default;
  Result<ScheduleAndPlan> plan_for(const Budget& budget) const;
  Status open_tables();
  Status open_streams(std::optional<ExpertSchedule> experts);
  uint64_t weights_bytes_max() const;
  // Begins the pass if the operation is the first of one. `to_write`: bytes of
  // its results.
  Status enter(const Pass& pass, uint64_t to_write);
  void begin_pass(const Pass& pass);
  void look_at_memory();
  void give_up();
  Status check(const Pass& pass) const;
  Status copy_tiles(MatrixId id, std::byte* out, const Pass& pass);
  void reserve_prepared(size_t bytes);
  void multiply_piece(const ExpertStream::Piece& piece,
                      const ExpertMatrix& matrix,
                      const float* x,
                      std::span<const uint32_t> x_rows,
                      std::span<const uint32_t> uses,
                      float* y);
  Status take_failure();

  StoreOptions options_;
  std::vector<File> files_;
  uint64_t alignment_ = 1;
  std::vector<ScheduledMatrix> matrices_;
  std::vector<Table> tables_;
  ExpertTables experts_;

  std::mutex mutex_;  // one task at a time
  Budget budget_;
  Plan plan_;
  std::unique_ptr<Schedule> schedule_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<ReadQueue> queue_;
  std::unique_ptr<TileStream> tiles_;
  std::optional<WeightBudget> weights_;
  std::optional<PassMemory> memory_;
  std::unique_ptr<ThreadPool> pool_;
  nn::Context context_;
  size_t prepared_bytes_ = 0;
  std::vector<float> gathered_;  // rows of x of one expert
  std::vector<float> products_;  // and what came out

  uint64_t pass_epoch_ = 0;  // the pass under way
  std::atomic<uint64_t> epoch_{1};
  std::atomic<uint64_t> cancelled_{0};
  std::atomic<uint64_t> exhausted_{
      0};  // of these, the newest for want of memory
  std::atomic<uint32_t> exhausted_rows_{0};
  std::atomic<uint64_t> exhausted_held_{0};
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> closed_{false};
  std::atomic<int64_t> arrays_bytes_{0};
  std::atomic<int64_t> arrays_bytes_max_{0};
  std::atomic<uint64_t> arrays_made_{0};
  std::unique_ptr<MemoryGuard> guard_;  // last: its thread uses the others
};

}  // namespace mlx_flash::python
