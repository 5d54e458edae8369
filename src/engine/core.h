// SPDX-License-Identifier: MIT
#pragma once

// A loaded model and all it runs with: files, weight stream, KV memory,
// threads. The public Engine is a thin face of it.
//
// There is one entry: forward(Batch). A prompt, a token, several sessions are
// all batches; in `fast` a row's result does not depend on what else is in
// the batch.
//
// Belongs to the thread that opened it (MLX's streams do).

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "base/trace.h"
#include "checkpoint/checkpoint.h"
#include "engine/batch.h"
#include "engine/core_hooks.h"
#include "engine/learnt_experts.h"
#include "engine/session_state.h"
#include "io/file.h"
#include "io/read_queue.h"
#include "kv/kv_cache.h"
#include "kv/kv_prefixes.h"
#include "kv/kv_reader.h"
#include "kv/session_file.h"
#include "mlx_flash/config.h"
#include "mlx_flash/stats.h"
#include "mlx_flash/text.h"
#include "models/decoder.h"
#include "nn/context.h"
#include "residency/live_budget.h"
#include "residency/row_reader.h"
#include "residency/weight_budget.h"

namespace mlx_flash {

class Core {
 public:
  using Hooks = CoreHooks;

  static Result<std::unique_ptr<Core>> open(const Config& config,
                                            const Hooks& hooks = {});
  // Reads headers and small tensors, plans, and leaves it at that. A budget
  // that is too small gives a summary with a ram_min_bytes above it.
  static Result<PlanSummary> plan_only(const Config& config,
                                       const Hooks& hooks = {});
  ~Core();

  // Runs one forward. Rows of a session stand in order of position, the first
  // at its length(); in stock all rows are of one session, and at most
  // prefill_rows(). Calls `row` for each that wants logits, in order, with its
  // index and logits, valid during the call; with `normalised` they may be
  // log-probabilities, as mlx-lm's samplers see them. On failure all sessions
  // are as before. `layer`: after each layer of a batch of several rows.
  using RowFn =
      std::function<void(size_t index, std::span<const float> logits)>;
  using LayerFn = std::function<void(size_t done, size_t total)>;
  Status forward(std::span<const BatchRow> batch,
                 const RowFn& row,
                 bool normalised = false,
                 const LayerFn& layer = nullptr);

  // Moves to another budget (0: what the machine has) and follows that from now
  // on; refused, and nothing changed, if it cannot work.
  Status set_ram(uint64_t ram_bytes);
  // The same from any thread, at the next forward; one that cannot work is
  // refused with a warning.
  void request_ram(uint64_t ram_bytes) { requested_ram_ = ram_bytes; }

  // A cache to a file (and to `base` of it), and back into an empty session.
  Result<SavedMark> save(SessionState& state,
                         SavedSession saved,
                         const SavedMark& base,
                         const std::string& path);
  Status load(SessionState& state, SessionReader& reader);
  // Gives a session the longest beginning of `tokens` that earlier requests
  // have left, if it is more than it has. None in stock and without reuse.
  void begin_with(SessionState& state, std::span<const int32_t> tokens);
  // Leaves what a session of `tokens` has for later ones.
  void keep(const SessionState& state, std::span<const int32_t> tokens);
  // Of config.json and of samples of the weights.
  Result<uint64_t> fingerprint() const;
  Result<uint64_t> write_trace(const std::string& path) const;

  const Config& config() const { return config_; }
  const Plan& plan() const { return plan_; }
  PlanSummary summary() const;
  StreamCounters counters() const;
  ExpertCounters expert_counters() const;
  const Text& text() const { return *text_; }
  const models::Decoder& model() const { return *model_; }
  const std::string& model_type() const { return model_type_; }
  bool stock() const { return context_.stock; }
  int kv_quant() const { return stock() ? 0 : config_.kv_quant; }
  int threads() const { return pool_->threads(); }
  size_t vocab_size() const { return model_->config().vocab_size; }
  // Rows of one forward while a prompt is read.
  size_t prefill_rows() const;

 private:
  friend class SessionState;
  Core() = default;
  Status load(const Config& config);
  Status make_plan(const Hooks& hooks);
  Status start(const Hooks& hooks);
  Status start_streams(const Hooks& hooks);
  Status open_kv_file(const KvLayout& layout, const Hooks& hooks);
  Status open_prefixes(const KvLayout& layout, const Hooks& hooks);
  bool reuse_on_disk() const { return config_.kv_ram_bytes > 0; }
  bool drop_kept();
  uint64_t session_layout() const;
  uint64_t old_kv_limit() const;
  Limits limits(uint64_t ram_bytes, uint64_t runtime_bytes) const;
  uint64_t arena_budget(uint64_t ram_bytes) const;
  void watch_memory(const Hooks& hooks);
  void follow_memory();
  Status move_budget(uint64_t ram_bytes);
  Status forward_once(std::span<const BatchRow> batch,
                      size_t first,
                      const RowFn& row,
                      bool normalised);
  Status check(std::span<const BatchRow> batch) const;
  Status ensure_kv(std::span<const BatchRow> batch);
  Status ensure_stock_kv(std::span<const BatchRow> batch);
  Status ensure_activations(std::span<const BatchRow> batch);
  Status return_activations();
  void reserve_scratch(size_t rows);
  Status make_room(uint64_t bytes, uint64_t ahead);
  Status share_out(uint64_t budget);
  uint64_t in_use() const;
  Status no_room() const;
  Status run(std::span<const BatchRow> batch,
             const RowFn& row,
             bool normalised);
  Status run_head(const mx::array& hidden,
                  std::span<const BatchRow> batch,
                  std::span<const uint32_t> wanted,
                  const RowFn& row,
                  bool normalised);

  Config config_;
  std::string model_type_;
  DType kv_dtype_ = DType::kF16;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<File> files_;
  std::unique_ptr<Text> text_;
  std::unique_ptr<Trace> trace_;  // null: not recorded
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<models::Decoder> model_;
  std::vector<ScheduledMatrix> matrices_;
  std::vector<ExpertLayer> expert_layers_;
  LearntExperts learnt_;
  uint64_t weights_bytes_ = 0;
  uint64_t alignment_ = 1;
  ModelCosts costs_;
  uint64_t runtime_bytes_ = 0;  // 0: not measured yet
  uint64_t runtime_slack_bytes_ = 0;

  std::unique_ptr<Schedule> schedule_;
  std::optional<ExpertSchedule> expert_schedule_;
  Plan plan_;
  size_t scratch_rows_ = 0;      // a forward may have now
  uint64_t lent_bytes_ = 0;      // of pins, to the activations of a prompt
  uint64_t stock_kv_bytes_ = 0;  // set aside for caches in MLX's memory

  static constexpr uint64_t kNoRequest = UINT64_MAX;
  std::atomic<uint64_t> requested_ram_{kNoRequest};
  std::function<LiveBudget::Sample()> sample_memory_;  // empty: not followed
  std::function<double()> memory_clock_;
  std::optional<LiveBudget> live_;
  double next_sample_ = 0;
  uint64_t refused_ram_ = 0;  // said so already
  // Destroyed backwards.
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<KvPool> kv_pool_;
  std::vector<nn::KvSpan> spans_;    // of the present forward
  std::unique_ptr<KvFile> kv_file_;  // null: all in memory
  KvFile::WriteFn write_kv_;
  std::unique_ptr<ReadQueue> queue_;
  std::unique_ptr<KvReader> kv_reader_;
  std::unique_ptr<KvPrefixes> prefixes_;  // null: none are kept
  uint64_t reused_tokens_ = 0;
  std::unique_ptr<TileStream> tiles_;
  std::unique_ptr<RowReader> rows_;
  std::unique_ptr<CachedExperts> experts_;  // null: the model has none
  std::optional<WeightBudget> weights_;     // KV and activations take from it
  std::unique_ptr<ExpertStream> wrapped_experts_;  // of tests
  nn::Context context_;
  std::atomic<bool> never_{false};
};

}  // namespace mlx_flash
