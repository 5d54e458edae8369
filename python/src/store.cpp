// SPDX-License-Identifier: MIT
#include "store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/cpu.h"
#include "base/memory.h"
#include "kernels/dequantize.h"
#include "kernels/fixed_point.h"
#include "kernels/matmul.h"
#include "nn/fast_ops.h"

namespace mlx_flash::python {
namespace {

// Experts kept of each table where the budget leaves no more.
constexpr uint32_t kExpertsMin = 2;

// Left to the ring of the dense weights when experts take the rest.
constexpr uint64_t kRingRoom = uint64_t{16} << 20;

// After so many passes memory besides caches does not grow any more, but for
// what the allocator keeps.
constexpr uint64_t kPassesToSettle = 3;
constexpr uint64_t kSlackBytes = 8'000'000;

// Rows of an embedding that are kept.
constexpr uint32_t kRowsKept = RowReader::kRowsDefault;

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
  std::lock_guard lock(mutex_);
  tables_.clear();
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

TableId Store::add_table(ScheduledMatrix table, bool experts) {
  tables_.push_back({std::move(table), experts, nullptr});
  return static_cast<TableId>(tables_.size() - 1);
}

Status Store::read(uint32_t file,
                   uint64_t offset,
                   std::span<std::byte> out) const {
  return files_[file].read(offset, out);
}

uint64_t Store::weights_bytes() const {
  uint64_t bytes = 0;
  for (const ScheduledMatrix& matrix : matrices_) {
    if (matrix.every_pass) bytes += matrix.bytes();
  }
  for (const Table& table : tables_) bytes += table.matrix.bytes();
  return bytes;
}

// Experts get what dense weights, used by every token, leave of the budget: as
// many of each table as their sizes allow.
uint64_t Store::experts_kept(const Budget& budget) const {
  uint64_t dense = 0;
  for (const ScheduledMatrix& matrix : matrices_) {
    if (matrix.every_pass) dense += matrix.bytes();
  }
  uint64_t one = 0;  // an expert of every table
  uint64_t most = kExpertsMin;
  for (const Table& table : tables_) {
    if (!table.experts) continue;
    one += RowReader::memory_bytes(table.matrix, alignment_, 1);
    most = std::max(most, table.matrix.rows);
  }
  if (one == 0) return 0;
  if (budget.experts > 0) {
    return std::clamp<uint64_t>(budget.experts, kExpertsMin, most);
  }
  const uint64_t used =
      budget.runtime + budget.decode + dense + dense / 16 + kRingRoom;
  const uint64_t left = budget.ram > used ? budget.ram - used : 0;
  const uint64_t share = budget.tables > 0 ? budget.tables : left;
  return std::clamp<uint64_t>(share / one, kExpertsMin, most);
}

uint64_t Store::table_rows(const Table& table, uint64_t kept) const {
  return std::min<uint64_t>(table.experts ? kept : kRowsKept,
                            table.matrix.rows);
}

uint64_t Store::table_bytes(uint64_t kept) const {
  uint64_t bytes = 0;
  for (const Table& table : tables_) {
    bytes +=
        RowReader::memory_bytes(table.matrix,
                                alignment_,
                                static_cast<uint32_t>(table_rows(table, kept)));
  }
  return bytes;
}

Status Store::open_tables(uint64_t kept) {
  tables_bytes_ = table_bytes(kept);
  for (Table& table : tables_) {
    FLASH_ASSIGN_OR_RETURN(
        table.reader,
        RowReader::create(table.matrix,
                          alignment_,
                          files_,
                          *queue_,
                          static_cast<uint32_t>(table_rows(table, kept))));
  }
  return Status();
}

Result<ScheduleAndPlan> Store::plan_for(const Budget& budget,
                                        uint64_t tables_bytes) const {
  ModelCosts costs;
  costs.activation_fixed_bytes = budget.decode;
  costs.context_max = 1;  // caches are MLX's: counted in `decode`, and watched
  Limits limits;
  limits.ram_bytes = budget.ram;
  limits.runtime_bytes = budget.runtime + tables_bytes;
  limits.context = 1;
  limits.prefill_rows = 1;
  limits.page_bytes = Arena::system_page_bytes();
  return plan_model(matrices_, alignment_, options_.tile_bytes, costs, limits);
}

Result<uint64_t> Store::minimum(const Budget& budget) const {
  constexpr uint64_t kPlenty = uint64_t{1} << 50;
  Budget roomy = budget;
  roomy.ram = kPlenty;
  FLASH_ASSIGN_OR_RETURN(
      const ScheduleAndPlan planned,
      plan_for(roomy, table_bytes(std::max(kExpertsMin, budget.experts))));
  return planned.plan.ram_min_bytes;
}

Status Store::start(const Budget& budget) {
  budget_ = budget;
  const uint64_t kept = experts_kept(budget);
  FLASH_ASSIGN_OR_RETURN(ScheduleAndPlan planned,
                         plan_for(budget, table_bytes(kept)));
  ReadQueueOptions queue;
  if (options_.queue_depth > 0) queue.depth = options_.queue_depth;
  queue_ = make_read_queue(IoKind::kAuto, queue);
  FLASH_RETURN_IF_ERROR(open_tables(kept));
  const uint64_t page = Arena::system_page_bytes();
  schedule_ = std::make_unique<Schedule>(std::move(planned.schedule));
  plan_ = std::move(planned.plan);
  // What not every pass uses is read where it is asked for, never kept.
  for (TileId id = 0; id < plan_.pinned.size(); ++id) {
    const Tile& tile = schedule_->tiles()[id];
    if (!plan_.pinned[id] || matrices_[tile.matrix].every_pass) continue;
    plan_.pinned[id] = false;
    plan_.pinned_slot_bytes -= tile_memory_bytes(tile, page);
  }
  pin_bytes_ = plan_.pinned_slot_bytes;
  FLASH_ASSIGN_OR_RETURN(
      arena_,
      Arena::create(
          TileStream::address_bytes(*schedule_, plan_, page) + 4 * page,
          plan_.ring_bytes + budget.ram));
  FLASH_ASSIGN_OR_RETURN(
      tiles_,
      TileStream::create(*schedule_,
                         plan_,
                         *arena_,
                         *queue_,
                         files_,
                         {.read_ahead = options_.read_ahead,
                          .controller = options_.controller}));
  pool_ = std::make_unique<ThreadPool>(options_.threads > 0 ? options_.threads
                                                            : usable_cpus());
  context_.pool = pool_.get();
  context_.schedule = schedule_.get();
  context_.tiles = tiles_.get();
  context_.interrupted = &interrupted_;
  reserve_prepared(1);
  return Status();
}

void Store::reserve_prepared(size_t bytes) {
  if (bytes <= prepared_bytes_) return;
  context_.reserve_scratch(
      1, bytes, pool_->threads(), kernels::matmul_scratch_bytes());
  prepared_bytes_ = bytes;
}

Status Store::check(const Pass& pass) const {
  if (closed_) return internal_error("the model has been closed");
  if (cancelled(pass.epoch)) return mlx_flash::cancelled("interrupted");
  return Status();
}

Status Store::enter(const Pass& pass) {
  FLASH_RETURN_IF_ERROR(check(pass));
  context_.failure = Status();
  interrupted_ = false;
  if (pass.rows > 0 && pass.epoch > pass_epoch_) begin_pass(pass);
  watch_memory();
  return Status();
}

uint64_t Store::outside_arena() const {
  const auto process = process_memory();
  if (!process.ok()) return budget_.runtime;
  const uint64_t arena = arena_->committed_bytes();
  // Committed memory that was never touched is not resident.
  return process->resident_bytes > arena ? process->resident_bytes - arena : 0;
}

// Gives pins the memory that caches and activations leave, as the last pass
// showed it: they grow with the conversation, and nothing here knows the model.
void Store::begin_pass(const Pass& pass) {
  if (pass_epoch_ > 0) tiles_->end_pass();
  pass_epoch_ = pass.epoch;
  if (budget_.fixed) return;
  const uint64_t outside = outside_arena();
  const uint64_t expected = pass_begin_bytes_ + budget_.decode;
  if (pass_rows_ > 1 && pass_peak_bytes_ > expected) {
    const uint64_t grown = pass_peak_bytes_ - expected;
    budget_.per_row = std::max(budget_.per_row, grown / pass_rows_);
  }
  pass_rows_ = pass.rows;
  pass_begin_bytes_ = pass_peak_bytes_ = outside;
  // The first passes touch code and caches for the first time.
  const bool settled = tiles_->stats().passes >= kPassesToSettle;
  const uint64_t base =
      settled ? outside + kSlackBytes
              : std::max(outside, budget_.runtime + tables_bytes_);
  const uint64_t needed = base + budget_.decode +
                          (pass.rows - 1) * budget_.per_row + plan_.ring_bytes;
  const uint64_t page = arena_->page_bytes();
  uint64_t room = budget_.ram > needed ? budget_.ram - needed : 0;
  room -= std::min(room, page_table_bytes(room, page));
  // Each move re-plans all tiles: not for less than a sixteenth upwards.
  const bool less = room < pin_bytes_;
  const bool more = room > pin_bytes_ + pin_bytes_ / 16 + (uint64_t{8} << 20) &&
                    pin_bytes_ < plan_.pass_bytes;
  if (!less && !more) return;
  std::vector<bool> pins = choose_pins(*schedule_, room, page);
  uint64_t bytes = 0;
  for (TileId id = 0; id < pins.size(); ++id) {
    const Tile& tile = schedule_->tiles()[id];
    pins[id] = pins[id] && matrices_[tile.matrix].every_pass;
    if (pins[id]) bytes += tile_memory_bytes(tile, page);
  }
  pin_bytes_ = std::max(bytes, less ? bytes : room);
  const Status moved = tiles_->set_pins(pins);
  if (!moved.ok()) context_.fail(moved);
}

void Store::watch_memory() {
  constexpr uint32_t kEvery = 8;  // operations; a look costs some 10 us
  if (++watch_ % kEvery != 0) return;
  const auto process = process_memory();
  if (!process.ok()) return;
  peak_bytes_ = std::max(peak_bytes_, process->resident_bytes);
  const uint64_t arena = arena_->committed_bytes();
  if (process->resident_bytes > arena) {
    pass_peak_bytes_ =
        std::max(pass_peak_bytes_, process->resident_bytes - arena);
  }
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
  FLASH_RETURN_IF_ERROR(enter(pass));
  return copy_tiles(id, out, pass);
}

namespace {

std::vector<uint32_t> sorted_unique(std::span<const uint32_t> ids) {
  std::vector<uint32_t> out(ids.begin(), ids.end());
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace

Status Store::fill_rows(TableId id,
                        std::span<const uint32_t> ids,
                        std::byte* out,
                        const Pass& pass) {
  std::lock_guard lock(mutex_);
  FLASH_RETURN_IF_ERROR(enter(pass));
  Table& table = tables_[id];
  const uint64_t row_bytes = table.matrix.parts[0].row_bytes;
  const std::vector<uint32_t> rows = sorted_unique(ids);
  return table.reader->read(rows, [&](size_t i, const RowReader::View& view) {
    std::memcpy(out + rows[i] * row_bytes, view.part[0], row_bytes);
  });
}

Status Store::take_failure() {
  return std::exchange(context_.failure, Status());
}

Status Store::multiply(
    MatrixId id, const float* x, size_t rows, float* y, const Pass& pass) {
  std::lock_guard lock(mutex_);
  FLASH_RETURN_IF_ERROR(enter(pass));
  const ScheduledMatrix& matrix = schedule_->matrices()[id];
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
  FLASH_RETURN_IF_ERROR(enter(pass));
  Table& table = tables_[id];
  const ScheduledMatrix& matrix = table.matrix;
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

Status Store::multiply_experts(TableId id,
                               const ExpertShape& expert,
                               const float* x,
                               std::span<const uint32_t> x_rows,
                               std::span<const uint32_t> experts,
                               float* y,
                               const Pass& pass) {
  std::lock_guard lock(mutex_);
  FLASH_RETURN_IF_ERROR(enter(pass));
  const std::vector<uint32_t> used = sorted_unique(experts);
  std::vector<size_t> rows;  // of y that one expert makes
  const auto one = [&](size_t e, const RowReader::View& view) {
    rows.clear();
    for (size_t i = 0; i < experts.size(); ++i) {
      if (experts[i] == used[e]) rows.push_back(i);
    }
    gathered_.resize(rows.size() * expert.cols);
    products_.resize(rows.size() * expert.rows);
    for (size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(gathered_.data() + i * expert.cols,
                  x + size_t{x_rows[rows[i]]} * expert.cols,
                  expert.cols * sizeof(float));
    }
    kernels::MatmulInput input{
        gathered_.data(), expert.cols, rows.size(), nullptr};
    const size_t bytes =
        kernels::prepared_bytes(expert.format, expert.cols, rows.size());
    if (bytes > 0) {
      reserve_prepared(bytes);
      std::byte* prepared = context_.prepared(bytes);
      kernels::prepare_fixed(expert.format,
                             expert.cols,
                             gathered_.data(),
                             expert.cols,
                             0,
                             rows.size(),
                             prepared);
      input.prepared = prepared;
    }
    const kernels::WeightRows w{.format = expert.format,
                                .rows = expert.rows,
                                .cols = expert.cols,
                                .weight = view.part[0],
                                .scales = view.part[1],
                                .biases = view.part[2]};
    const size_t scratch = kernels::matmul_scratch_bytes();
    constexpr size_t kRowGrain = 8;
    pool_->parallel_for(
        expert.rows, kRowGrain, [&](size_t begin, size_t end, int thread) {
          kernels::matmul(w,
                          begin,
                          end,
                          input,
                          products_.data(),
                          expert.rows,
                          context_.thread_scratch(thread, scratch));
        });
    for (size_t i = 0; i < rows.size(); ++i) {
      std::memcpy(y + rows[i] * expert.rows,
                  products_.data() + i * expert.rows,
                  expert.rows * sizeof(float));
    }
  };
  return tables_[id].reader->read(used, one);
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
  stats.pinned_bytes = pin_bytes_;
  stats.peak_bytes = peak_bytes_;
  stats.compute_seconds = context_.compute_seconds;
  return stats;
}

}  // namespace mlx_flash::python
