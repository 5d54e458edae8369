// SPDX-License-Identifier: MIT
#include "store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "kernels/dequantize.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "nn/fast_ops.h"
#include "residency/expert_share.h"

namespace mlx_flash::python {
namespace {

// After so many passes memory besides caches does not grow any more, but for
// what the allocator keeps.
constexpr uint64_t kPassesToSettle = 3;

// Rows of an embedding that are kept.
uint32_t rows_of(uint64_t rows) {
  return static_cast<uint32_t>(
      std::min<uint64_t>(rows, RowReader::kRowsDefault));
}

// Of all experts that `ids` names.
uint64_t bytes_of(const ExpertMatrix& matrix, std::span<const uint32_t> ids) {
  const std::set<uint32_t> named(ids.begin(), ids.end());
  uint64_t row_bytes = 0;
  for (uint32_t p = 0; p < matrix.part_count; ++p) {
    row_bytes += matrix.parts[0][p].row_bytes;
  }
  return named.size() * matrix.rows * row_bytes;
}

}  // namespace

Result<std::shared_ptr<Store>> Store::open(
    const std::vector<std::string>& paths, const StoreOptions& options) {
  std::shared_ptr<Store> store(new Store());
  store->options_ = options;
  for (const std::string& path : paths) {
    FLASH_ASSIGN_OR_RETURN(File file, File::open(path, File::Mode::kDirect));
    store->alignment_ = std::max<uint64_t>(store->alignment_, file.alignment());
    store->files_.push_back(std::move(file));
  }
  return store;
}

Store::~Store() {
  close();
}

void Store::close() {
  closed_ = true;
  std::unique_ptr<MemoryGuard> guard;
  {
    const std::lock_guard lock(mutex_);
    guard = std::move(guard_);
  }
  guard.reset();  // its look takes the mutex
  const std::lock_guard lock(mutex_);
  tables_.clear();
  experts_.close();
  memory_.reset();
  weights_.reset();
  tiles_.reset();
  queue_.reset();
  arena_.reset();
  pool_.reset();
  context_ = nn::Context();
  gathered_ = {};
  products_ = {};
}

MatrixId Store::add(ScheduledMatrix matrix) {
  matrices_.push_back(std::move(matrix));
  return static_cast<MatrixId>(matrices_.size() - 1);
}

TableId Store::add_table(ScheduledMatrix table) {
  tables_.push_back({std::move(table), nullptr});
  return static_cast<TableId>(tables_.size() - 1);
}

Status Store::read(uint32_t file,
                   uint64_t offset,
                   std::span<std::byte> out) const {
  return files_[file].read(offset, out);
}

uint64_t Store::weights_bytes() const {
  uint64_t bytes = experts_.bytes();
  for (const ScheduledMatrix& matrix : matrices_) {
    if (matrix.every_pass) bytes += matrix.bytes();
  }
  for (const Table& table : tables_) bytes += table.matrix.bytes();
  return bytes;
}

uint64_t Store::tables_bytes() const {
  uint64_t bytes = 0;
  for (const Table& table : tables_) {
    bytes += RowReader::memory_bytes(
        table.matrix, alignment_, rows_of(table.matrix.rows));
  }
  return bytes;
}

Status Store::open_tables() {
  for (Table& table : tables_) {
    FLASH_ASSIGN_OR_RETURN(table.reader,
                           RowReader::create(table.matrix,
                                             alignment_,
                                             files_,
                                             *queue_,
                                             rows_of(table.matrix.rows)));
  }
  return Status();
}

Result<ScheduleAndPlan> Store::plan_for(const Budget& budget) const {
  ModelCosts costs;
  costs.activation_fixed_bytes = budget.decode;
  costs.context_max = 1;  // caches are MLX's: counted in `decode`, and watched
  Limits limits;
  limits.ram_bytes = budget.ram;
  limits.runtime_bytes = budget.runtime + tables_bytes();
  limits.context = 1;
  limits.prefill_rows = 1;
  limits.page_bytes = Arena::system_page_bytes();
  return plan_model(matrices_,
                    alignment_,
                    options_.tile_bytes,
                    costs,
                    limits,
                    experts_.layers());
}

Result<uint64_t> Store::minimum(const Budget& budget) const {
  constexpr uint64_t kPlenty = uint64_t{1} << 50;
  Budget roomy = budget;
  roomy.ram = kPlenty;
  FLASH_ASSIGN_OR_RETURN(const ScheduleAndPlan planned, plan_for(roomy));
  return planned.plan.ram_min_bytes;
}

Status Store::start(const Budget& budget) {
  budget_ = budget;
  FLASH_ASSIGN_OR_RETURN(ScheduleAndPlan planned, plan_for(budget));
  ReadQueueOptions queue;
  if (options_.queue_depth > 0) queue.depth = options_.queue_depth;
  queue.bytes_per_s = options_.bytes_per_s;
  queue_ = make_read_queue(options_.io, queue);
  FLASH_RETURN_IF_ERROR(open_tables());
  schedule_ = std::make_unique<Schedule>(std::move(planned.schedule));
  plan_ = std::move(planned.plan);
  FLASH_RETURN_IF_ERROR(open_streams(std::move(planned.experts)));
  pool_ = std::make_unique<ThreadPool>(options_.threads > 0 ? options_.threads
                                                            : usable_cpus());
  context_.pool = pool_.get();
  context_.schedule = schedule_.get();
  context_.tiles = tiles_.get();
  context_.interrupted = &interrupted_;
  reserve_prepared(1);
  return Status();
}

Status Store::open_streams(std::optional<ExpertSchedule> experts) {
  const uint64_t page = Arena::system_page_bytes();
  uint64_t address = TileStream::address_bytes(*schedule_, plan_, page);
  if (experts) address += CachedExperts::address_bytes(*experts, page);
  FLASH_ASSIGN_OR_RETURN(
      arena_,
      Arena::create(address + 4 * page, plan_.ring_bytes + budget_.ram));
  FLASH_ASSIGN_OR_RETURN(
      tiles_,
      TileStream::create(*schedule_,
                         plan_,
                         *arena_,
                         *queue_,
                         files_,
                         {.read_ahead = options_.read_ahead,
                          .controller = options_.controller}));
  if (experts) {
    FLASH_RETURN_IF_ERROR(experts_.open(std::move(*experts),
                                        plan_.expert_bytes,
                                        *arena_,
                                        *queue_,
                                        files_,
                                        options_.policy,
                                        options_.read_ahead));
  }
  weights_.emplace(
      plan_, page, *schedule_, *tiles_, experts_.schedule(), experts_.stream());
  const uint64_t most = weights_bytes_max();
  memory_.emplace(budget_, plan_, *arena_, *weights_, most, tables_bytes());
  guard_ = std::make_unique<MemoryGuard>([this] { look_at_memory(); });
  return weights_->move(std::min(weights_->bytes(), most));
}

// All that every pass uses, and what experts may have. What is left is not
// spent on matrices that are read where they are asked for.
uint64_t Store::weights_bytes_max() const {
  const uint64_t page = arena_->page_bytes();
  uint64_t most = 0;
  for (const Tile& tile : schedule_->tiles()) {
    if (!matrices_[tile.matrix].every_pass) continue;
    most += tile_memory_bytes(tile, page);
  }
  const ExpertSchedule* experts = experts_.schedule();
  if (experts == nullptr) return most;
  uint64_t kept = expert_memory_all(*experts, page);
  if (budget_.experts > 0) {
    uint64_t one = 0;  // of each table
    for (uint32_t l = 0; l < experts->layers().size(); ++l) {
      one += experts->slab_bytes(l);
    }
    kept = std::min(kept, budget_.experts * one);
  }
  return most + std::max(kept, weights_->bytes_min());
}

void Store::reserve_prepared(size_t bytes) {
  if (bytes <= prepared_bytes_) return;
  context_.reserve_scratch(
      1, bytes, pool_->threads(), kernels::matmul_scratch_bytes());
  prepared_bytes_ = bytes;
}

Status Store::cancellation(uint64_t epoch) const {
  if (epoch > exhausted_.load()) return mlx_flash::cancelled("interrupted");
  return exhausted(fmt::format(
      "a forward of {} tokens {}, beside the {:.0f} MB in use when it began. "
      "FlashConfig.prefill_chunk_size (prefill_step_size in mlx-lm's "
      "functions) "
      "splits a prompt, kv_cache_quantized makes its cache smaller",
      exhausted_rows_.load(),
      kNoRoom,
      static_cast<double>(exhausted_held_.load()) / 1e6));
}

Status Store::check(const Pass& pass) const {
  if (closed_) return internal_error("the model has been closed");
  return cancelled(pass.epoch) ? cancellation(pass.epoch) : Status();
}

Status Store::enter(const Pass& pass, uint64_t to_write) {
  FLASH_RETURN_IF_ERROR(check(pass));
  context_.failure = Status();
  interrupted_ = false;
  if (pass.rows > 0 && pass.epoch > pass_epoch_) begin_pass(pass);
  if (!memory_->look_now_and_then(to_write)) give_up();
  return check(pass);
}

void Store::begin_pass(const Pass& pass) {
  if (pass_epoch_ > 0) tiles_->end_pass();
  pass_epoch_ = pass.epoch;
  const bool settled = tiles_->stats().passes >= kPassesToSettle;
  const Status moved = memory_->begin(pass.rows, settled);
  if (!moved.ok()) context_.fail(moved);
  guard_->watch(pass.rows > 1);
}

// On the guard's thread. While an operation of ours runs it is not MLX's turn
// to take memory.
void Store::look_at_memory() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || !memory_) return;
  if (!memory_->look()) give_up();
}

// Nothing of the forward runs any more, as after an interrupt.
void Store::give_up() {
  const uint64_t epoch = epoch_.load();
  if (epoch <= exhausted_.load()) return;
  exhausted_rows_ = memory_->rows();
  exhausted_held_ = memory_->begin_bytes();
  exhausted_ = epoch;
  interrupt();
}

Status Store::copy_tiles(MatrixId id, std::byte* out, const Pass& pass) {
  const ScheduledMatrix& matrix = schedule_->matrices()[id];
  const uint64_t row_bytes = matrix.parts[0].row_bytes;
  for (uint32_t i = 0; i < matrix.tile_count; ++i) {
    FLASH_RETURN_IF_ERROR(check(pass));
    const TileId tile_id = matrix.first_tile + i;
    FLASH_ASSIGN_OR_RETURN(const TileStream::View view,
                           tiles_->acquire(tile_id));
    const Tile& tile = schedule_->tiles()[tile_id];
    std::memcpy(out + tile.row_begin * row_bytes,
                view.part[0],
                (tile.row_end - tile.row_begin) * row_bytes);
    tiles_->release(tile_id);
  }
  return Status();
}

Status Store::fill(MatrixId id, std::byte* out, const Pass& pass) {
  std::lock_guard lock(mutex_);
  FLASH_RETURN_IF_ERROR(enter(pass, matrices_[id].bytes()));
  return copy_tiles(id, out, pass);
}

Status Store::fill_rows(TableId id,
                        std::span<const uint32_t> ids,
                        std::span<std::byte* const> out,
                        const Pass& pass) {
  std::lock_guard lock(mutex_);
  Table& table = tables_[id];
  const uint64_t row_bytes = table.matrix.bytes() / table.matrix.rows;
  FLASH_RETURN_IF_ERROR(enter(pass, ids.size() * row_bytes));
  std::vector<uint32_t> rows(ids.begin(), ids.end());
  std::sort(rows.begin(), rows.end());
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  return table.reader->read(rows, [&](size_t i, const RowReader::View& view) {
    for (uint32_t p = 0; p < out.size(); ++p) {
      const uint64_t bytes = table.matrix.parts[p].row_bytes;
      std::memcpy(out[p] + rows[i] * bytes, view.part[p], bytes);
    }
  });
}

Status Store::fill_experts(ExpertTableId id,
                           std::span<const uint32_t> ids,
                           std::span<std::byte* const> out,
                           const Pass& pass) {
  std::lock_guard lock(mutex_);
  const ExpertMatrix& matrix = expert_matrix(id);
  FLASH_RETURN_IF_ERROR(enter(pass, bytes_of(matrix, ids)));
  return experts_.round(
      id, ids, [&](const ExpertStream::Piece& piece, const auto&) {
        for (uint32_t r = 0; r < piece.rows_count; ++r) {
          const ExpertStream::Rows& rows = piece.rows[r];
          const uint64_t first = piece.expert * matrix.rows + rows.row_begin;
          for (uint32_t p = 0; p < out.size(); ++p) {
            const uint64_t bytes = matrix.parts[0][p].row_bytes;
            std::memcpy(out[p] + first * bytes,
                        rows.part[p],
                        (rows.row_end - rows.row_begin) * bytes);
          }
        }
        return check(pass);
      });
}

Status Store::take_failure() {
  return std::exchange(context_.failure, Status());
}

Status Store::multiply(
    MatrixId id, const float* x, size_t rows, float* y, const Pass& pass) {
  std::lock_guard lock(mutex_);
  const ScheduledMatrix& matrix = schedule_->matrices()[id];
  FLASH_RETURN_IF_ERROR(enter(pass, rows * matrix.rows * sizeof(float)));
  reserve_prepared(kernels::prepared_bytes(matrix.format, matrix.cols, rows));
  nn::Linear linear;
  linear.matrix = id;
  linear.rows = static_cast<uint32_t>(matrix.rows);
  linear.cols = static_cast<uint32_t>(matrix.cols);
  interrupted_ = cancelled(pass.epoch);
  nn::fast::linear(context_, linear, x, rows, y);
  return take_failure();
}

Status Store::embed(TableId id,
                    std::span<const uint32_t> ids,
                    float* out,
                    const Pass& pass) {
  std::lock_guard lock(mutex_);
  Table& table = tables_[id];
  const ScheduledMatrix& matrix = table.matrix;
  const uint64_t row_bytes = matrix.cols * sizeof(float);
  FLASH_RETURN_IF_ERROR(enter(pass, ids.size() * row_bytes));
  return table.reader->read(ids, [&](size_t i, const RowReader::View& view) {
    kernels::dequantize_row({.format = matrix.format,
                             .rows = 1,
                             .cols = matrix.cols,
                             .weight = view.part[0],
                             .scales = view.part[1],
                             .biases = view.part[2]},
                            0,
                            out + i * matrix.cols);
  });
}

Status Store::multiply_experts(ExpertTableId id,
                               const float* x,
                               std::span<const uint32_t> x_rows,
                               std::span<const uint32_t> experts,
                               float* y,
                               const Pass& pass) {
  std::lock_guard lock(mutex_);
  const ExpertMatrix& matrix = expert_matrix(id);
  const uint64_t row_bytes = matrix.rows * sizeof(float);
  FLASH_RETURN_IF_ERROR(enter(pass, experts.size() * row_bytes));
  return experts_.round(
      id,
      experts,
      [&](const ExpertStream::Piece& piece, std::span<const uint32_t> uses) {
        multiply_piece(piece, matrix, x, x_rows, uses, y);
        return check(pass);
      });
}

// Rows of x that the expert is for, side by side, times the rows of its matrix
// that the piece has.
void Store::multiply_piece(const ExpertStream::Piece& piece,
                           const ExpertMatrix& matrix,
                           const float* x,
                           std::span<const uint32_t> x_rows,
                           std::span<const uint32_t> uses,
                           float* y) {
  const double start = now_seconds();
  const size_t cols = matrix.cols;
  gathered_.resize(uses.size() * cols);
  for (size_t i = 0; i < uses.size(); ++i) {
    std::memcpy(gathered_.data() + i * cols,
                x + size_t{x_rows[uses[i]]} * cols,
                cols * sizeof(float));
  }
  kernels::MatmulInput input{gathered_.data(), cols, uses.size(), nullptr};
  const size_t bytes =
      kernels::prepared_bytes(matrix.format, cols, uses.size());
  if (bytes > 0) {
    reserve_prepared(bytes);
    std::byte* prepared = context_.prepared(bytes);
    kernels::prepare_fixed(
        matrix.format, cols, gathered_.data(), cols, 0, uses.size(), prepared);
    input.prepared = prepared;
  }
  for (uint32_t r = 0; r < piece.rows_count; ++r) {
    const ExpertStream::Rows& rows = piece.rows[r];
    const size_t count = rows.row_end - rows.row_begin;
    products_.resize(uses.size() * count);
    const kernels::WeightRows w{.format = matrix.format,
                                .rows = count,
                                .cols = cols,
                                .weight = rows.part[0],
                                .scales = rows.part[1],
                                .biases = rows.part[2]};
    pool_->parallel_for(
        count, kernels::kRowGrain, [&](size_t begin, size_t end, int thread) {
          kernels::matmul(w,
                          begin,
                          end,
                          input,
                          products_.data(),
                          count,
                          context_.thread_scratch(thread));
        });
    for (size_t i = 0; i < uses.size(); ++i) {
      std::memcpy(y + uses[i] * matrix.rows + rows.row_begin,
                  products_.data() + i * count,
                  count * sizeof(float));
    }
  }
  context_.compute_seconds += now_seconds() - start;
}

void Store::count_array(int64_t bytes) {
  const int64_t now = arrays_bytes_ += bytes;
  if (bytes <= 0) return;
  ++arrays_made_;
  int64_t most = arrays_bytes_max_;
  while (now > most && !arrays_bytes_max_.compare_exchange_weak(most, now)) {
  }
}

Store::Stats Store::stats() {
  std::lock_guard lock(mutex_);
  Stats stats;
  if (tiles_) stats.stream = tiles_->stats();
  if (queue_) stats.io = queue_->name();
  for (const Table& table : tables_) {
    if (!table.reader) continue;
    const RowReader::Stats& one = table.reader->stats();
    stats.tables.rows += one.rows;
    stats.tables.hits += one.hits;
    stats.tables.bytes_read += one.bytes_read;
    stats.tables.wait_seconds += one.wait_seconds;
  }
  stats.arrays_bytes = static_cast<uint64_t>(arrays_bytes_.load());
  stats.arrays_bytes_max = static_cast<uint64_t>(arrays_bytes_max_.load());
  stats.arrays_made = arrays_made_;
  if (weights_) stats.pinned_bytes = weights_->bytes();
  if (CachedExperts* experts = experts_.stream()) {
    stats.experts = experts->stats();
    stats.experts_bytes = experts->resident_bytes();
    stats.pinned_bytes -= weights_->promised_bytes() + stats.experts_bytes;
  }
  if (memory_) stats.peak_bytes = memory_->peak_bytes();
  stats.compute_seconds = context_.compute_seconds;
  return stats;
}

}  // namespace mlx_flash::python
