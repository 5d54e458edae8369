// SPDX-License-Identifier: MIT

// Opening a model: headers, tokenizer and small tensors; a plan; memory and
// the weight stream.

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/cpu.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/size.h"
#include "engine/core.h"
#include "io/traced_read_queue.h"
#include "kernels/matmul.h"
#include "kernels/vector_ops.h"
#include "models/registry.h"
#include "residency/traced_expert_stream.h"
#include "residency/traced_tile_stream.h"

namespace mlx_flash {
namespace {

// Memory the process takes after planning and outside of the arena: code of
// kernels and of MLX not touched before, thread stacks, the allocator's slack.
constexpr uint64_t kReserveBytes = 5'000'000;

// What is resident differs a little from run to run, and the smallest budget
// that one run names must work in the next.
constexpr uint64_t kRuntimeSlackBytes = 1'000'000;

// More than any machine has.
constexpr uint64_t kRamPlenty = uint64_t{1} << 50;

// The context of a model that does not say how far it goes.
constexpr uint64_t kContextUnknown = 4096;

DType kv_dtype(KvType type) {
  switch (type) {
    case KvType::kF32:
      return DType::kF32;
    case KvType::kBF16:
      return DType::kBF16;
    default:
      return DType::kF16;
  }
}

IoKind io_kind(IoBackend backend) {
  switch (backend) {
    case IoBackend::kUring:
      return IoKind::kUring;
    case IoBackend::kThreads:
      return IoKind::kThreads;
    default:
      return IoKind::kAuto;
  }
}

CachedExperts::LookAhead look_ahead(const Config& config) {
  if (!config.read_ahead) return CachedExperts::LookAhead::kNever;
  switch (config.look_ahead) {
    case LookAhead::kOn:
      return CachedExperts::LookAhead::kAlways;
    case LookAhead::kOff:
      return CachedExperts::LookAhead::kNever;
    default:
      return CachedExperts::LookAhead::kGate;
  }
}

bool wants_stock(Kernels kernels) {
  if (kernels != Kernels::kAuto) return kernels == Kernels::kStock;
  return mx::default_device() == mx::Device::gpu;
}

// The unbounded mode and what it goes with.
Status check_keep(const Config& config, bool stock) {
  if (config.kv_keep_tokens == 0) return Status();
  if (stock) {
    return invalid_input("--kv-keep needs the fast kernels: --kernels fast");
  }
  if (config.kv_ram_bytes > 0 || config.kv_reuse_bytes > 0) {
    return invalid_input(
        "--kv-keep keeps all keys of a session in memory: leave out --kv-ram "
        "and --kv-reuse");
  }
  return Status();
}

// Whether what is forgotten lies before everything that queries see in full
// precision or in a sliding window.
Status check_keep_context(const Config& config,
                          const KvLayout& layout,
                          uint64_t context) {
  if (config.kv_keep_tokens == 0) return Status();
  if (layout.head_dim != layout.value_dim) {
    return unsupported("--kv-keep: not with this model's kind of attention");
  }
  uint64_t newest = kKvWindow;
  for (const uint32_t window : layout.windows) {
    newest = std::max<uint64_t>(newest, window);
  }
  constexpr uint64_t kBlock = kernels::kKvBlock;
  const uint64_t first = (config.kv_keep_tokens + kBlock - 1) / kBlock * kBlock;
  const uint64_t least = first + newest + kKvRollback + 2 * kBlock;
  if (context >= least) return Status();
  return invalid_input(fmt::format(
      "--kv-keep {}: the context has {} tokens; it takes {} (--ctx)",
      config.kv_keep_tokens,
      context,
      least));
}

int thread_count(int asked) {
  if (asked > 0) return asked;
  return usable_cpus();
}

PlanSummary summarise(const Plan& plan,
                      const Schedule& schedule,
                      uint64_t weights_bytes) {
  return {.weights_bytes = weights_bytes,
          .pass_bytes = plan.pass_bytes,
          .ram_bytes = plan.ram_bytes,
          .ram_min_bytes = plan.ram_min_bytes,
          .pinned_bytes = plan.pinned_bytes,
          .streamed_bytes = plan.streamed_bytes,
          .expert_bytes = plan.expert_bytes_all,
          .expert_cache_bytes = plan.expert_bytes,
          .expert_token_bytes = plan.expert_token_bytes,
          .expert_hit_rate = plan.expert_hit_rate,
          .ring_bytes = plan.ring_bytes,
          .kv_bytes = plan.kv_bytes,
          .kv_bytes_max = plan.kv_bytes_max,
          .kv_disk_bytes_max = plan.kv_disk_bytes_max,
          .kv_reuse_bytes = plan.kv_reuse_bytes,
          .activation_bytes = plan.activation_bytes,
          .prefill_activation_bytes = plan.prefill_activation_bytes,
          .runtime_bytes = plan.runtime_bytes,
          .predicted_peak_bytes = plan.predicted_peak_bytes,
          .predicted_decode_tok_s = plan.predicted_decode_tok_s,
          .predicted_full_tok_s = plan.predicted_full_tok_s,
          .disk_bytes_per_s = plan.disk_bytes_per_s,
          .context = plan.context,
          .prefill_rows = plan.prefill_rows,
          .ring_slots = plan.ring_slots,
          .tile_bytes = schedule.tile_bytes_max(),
          .queue_depth = plan.queue_depth};
}

// --moe-top-k.
Status choose_experts(const Config& config, models::DecoderConfig& model) {
  if (config.moe_top_k == 0) return Status();
  const uint32_t own = model.moe.routing.top_k;
  FLASH_RETURN_IF_ERROR(
      models::set_top_k(model, config.moe_top_k).at(config.model));
  if (config.moe_top_k != own) {
    log_warning(
        fmt::format("a token uses {} {} instead of {}: other answers than "
                    "the model's own",
                    config.moe_top_k,
                    config.moe_top_k == 1 ? "expert" : "experts",
                    own));
  }
  return Status();
}

}  // namespace

Result<std::unique_ptr<Core>> Core::open(const Config& config,
                                         const Hooks& hooks) {
  std::unique_ptr<Core> core(new Core());
  try {
    FLASH_RETURN_IF_ERROR(core->load(config));
    FLASH_RETURN_IF_ERROR(core->make_plan(hooks));
    FLASH_RETURN_IF_ERROR(core->start(hooks));
  } catch (const std::exception& error) {
    return internal_error(fmt::format("MLX: {}", error.what()));
  }
  return core;
}

Result<PlanSummary> Core::plan_only(const Config& config, const Hooks& hooks) {
  std::unique_ptr<Core> core(new Core());
  try {
    FLASH_RETURN_IF_ERROR(core->load(config));
    const Status planned = core->make_plan(hooks);
    if (planned.ok()) return core->summary();
    // A budget that is too small has no plan, but an answer: which would do.
    const uint64_t asked = config.ram_bytes;
    core->config_.ram_bytes = kRamPlenty;
    if (!core->make_plan(hooks).ok()) return planned;
    const PlanSummary roomy = core->summary();
    if (asked == 0 || roomy.ram_min_bytes <= asked) return planned;
    return PlanSummary{.weights_bytes = roomy.weights_bytes,
                       .pass_bytes = roomy.pass_bytes,
                       .ram_bytes = asked,
                       .ram_min_bytes = roomy.ram_min_bytes,
                       .streamed_bytes = roomy.pass_bytes,
                       .runtime_bytes = roomy.runtime_bytes};
  } catch (const std::exception& error) {
    return internal_error(fmt::format("MLX: {}", error.what()));
  }
}

PlanSummary Core::summary() const {
  return summarise(plan_, *schedule_, weights_bytes_);
}

Status Core::load(const Config& config) {
  config_ = config;
  // Before the plan measures what the process holds.
  if (config.trace_events > 0) {
    trace_ = std::make_unique<Trace>(config.trace_events);
  }
  context_.stock = wants_stock(config.kernels);
  if (!context_.stock && !kernels::supported()) {
    return unsupported(
        "this CPU has no fused multiply-add (AVX2 on x86); use --kernels "
        "stock");
  }
  // Stock keeps KV in the model's own dtype, at most float32.
  FLASH_RETURN_IF_ERROR(check_keep(config, context_.stock));
  kv_dtype_ = context_.stock ? DType::kF32 : kv_dtype(config.kv_type);
  context_.kv_dtype = kv_dtype_;
  context_.mx_stream = mx::default_stream(
      context_.stock ? mx::default_device() : mx::Device(mx::Device::cpu));
  context_.interrupted = &never_;
  mx::disable_compile();

  FLASH_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(config.model));
  checkpoint_ = std::make_unique<Checkpoint>(std::move(checkpoint));
  FLASH_ASSIGN_OR_RETURN(models::DecoderConfig model_config,
                         models::read_config(*checkpoint_));
  FLASH_RETURN_IF_ERROR(choose_experts(config, model_config));
  context_.look_ahead = config.look_ahead != LookAhead::kOff;
  model_type_ = checkpoint_->config()["model_type"].get<std::string>();
  for (const std::string& path : checkpoint_->files()) {
    FLASH_ASSIGN_OR_RETURN(File file, File::open(path, File::Mode::kDirect));
    alignment_ = std::max<uint64_t>(alignment_, file.alignment());
    files_.push_back(std::move(file));
  }
  nn::WeightStore store(*checkpoint_, files_, context_.stock);
  FLASH_ASSIGN_OR_RETURN(model_, models::Decoder::build(model_config, store));
  matrices_ = store.take_matrices();
  expert_layers_ = store.take_expert_layers();
  weights_bytes_ = store.weights_bytes();
  Result<std::unique_ptr<Text>> text = Text::open(config.model);
  // Weights without a tokenizer can still be run by ids.
  text_ = text.ok() ? std::move(text).value()
                    : Text::without_tokenizer(text.status());

  if (!expert_layers_.empty() && !config.learnt_dir.empty()) {
    FLASH_ASSIGN_OR_RETURN(const uint64_t model, fingerprint());
    learnt_.open(config.learnt_dir, model, expert_layers_);
  }

  pool_ = std::make_unique<ThreadPool>(
      thread_count(context_.stock ? 1 : config.threads));
  context_.pool = pool_.get();
  return Status();
}

Limits Core::limits(uint64_t ram_bytes, uint64_t runtime_bytes) const {
  Limits limits;
  limits.ram_bytes = ram_bytes;
  limits.runtime_bytes = runtime_bytes;
  limits.runtime_slack_bytes = runtime_slack_bytes_;
  limits.runtime_spare_bytes = runtime_slack_bytes_ > 0 ? kReserveBytes / 2 : 0;
  limits.context = config_.context;
  limits.kv_ram_bytes = stock() ? 0 : config_.kv_ram_bytes;
  limits.kv_reuse_bytes =
      stock() || reuse_on_disk() ? 0 : config_.kv_reuse_bytes;
  limits.prefill_rows = stock() ? 1 : config_.prefill_rows;
  limits.page_bytes = Arena::system_page_bytes();
  limits.disk_bytes_per_s = config_.disk_bytes_per_s;
  limits.learnt = learnt_.known();
  const double most = config_.disk_limit_bytes_per_s;
  if (most > 0 &&
      (config_.disk_bytes_per_s == 0 || config_.disk_bytes_per_s > most)) {
    limits.disk_bytes_per_s = most;
  }
  return limits;
}

Status Core::make_plan(const Hooks& hooks) {
  costs_ = model_->costs(stock(), kv_dtype_, kv_quant());
  if (costs_.context_max == 0) {
    costs_.context_max = std::max<uint64_t>(
        kContextUnknown, model_->config().max_position_embeddings);
  }
  KvLayout layout = model_->kv_layout(kv_dtype_, kv_quant());
  layout.raw_keys = config_.kv_keep_tokens > 0;
  costs_.kv_bytes_per_token +=
      layout.layers * layout.raw_stride() / kernels::kKvBlock;
  uint64_t rows_memory = 0;
  if (!matrices_.empty()) {
    rows_memory = RowReader::memory_bytes(matrices_[model_->embedding().matrix],
                                          alignment_);
  }
  const uint64_t ram =
      config_.ram_bytes != 0 ? config_.ram_bytes : available_ram();
  return_free_memory();  // what opening used is not held
  FLASH_ASSIGN_OR_RETURN(const ProcessMemory held, process_memory());
  if (runtime_bytes_ == 0) {
    runtime_bytes_ =
        hooks.runtime_bytes.value_or(held.resident_bytes + kReserveBytes) +
        rows_memory;
    if (!hooks.runtime_bytes) runtime_slack_bytes_ = kRuntimeSlackBytes;
  }
  const auto plan_with = [&](const Limits& limits) {
    return plan_model(matrices_,
                      alignment_,
                      config_.tile_bytes,
                      costs_,
                      limits,
                      expert_layers_);
  };
  Limits wanted = limits(ram, runtime_bytes_);
  const uint64_t chunk = stock() ? 0 : layout.full_stride() / kernels::kKvBlock;
  if (wanted.kv_ram_bytes > 0) costs_.kv_chunk_bytes_per_row = chunk;
  auto planned = plan_with(wanted);
  if (!planned.ok() && !stock() && wanted.context > 0 &&
      wanted.kv_ram_bytes == 0 && !layout.raw_keys) {
    // A context that memory does not hold goes to disk.
    wanted.kv_ram_bytes = costs_.kv_floor_bytes;
    wanted.kv_reuse_bytes = 0;  // goes with it
    costs_.kv_chunk_bytes_per_row = chunk;
    if (auto again = plan_with(wanted); again.ok()) {
      planned = std::move(again);
      config_.kv_ram_bytes = wanted.kv_ram_bytes;
    }
  }
  if (!planned.ok()) return planned.status().at(config_.model);
  schedule_ = std::make_unique<Schedule>(std::move(planned->schedule));
  expert_schedule_ = std::move(planned->experts);
  plan_ = std::move(planned->plan);
  if (layout.raw_keys) config_.context = plan_.context;  // whatever comes
  return check_keep_context(config_, layout, plan_.context).at(config_.model);
}

Status Core::start(const Hooks& hooks) {
  context_.schedule = schedule_.get();
  // Addresses for everything at its largest: homes of all tiles, the ring, KV
  // of as many full sessions as the budget could ever hold.
  const uint64_t system_page = Arena::system_page_bytes();
  KvLayout layout = model_->kv_layout(kv_dtype_, kv_quant());
  layout.raw_keys = config_.kv_keep_tokens > 0;
  constexpr uint64_t kSessionsMax = 64;
  const uint64_t blocks =
      (plan_.context / kernels::kKvBlock + 1) * kSessionsMax * layout.layers;
  const uint64_t addresses =
      TileStream::address_bytes(*schedule_, plan_, system_page) +
      KvPool::address_bytes(layout, blocks) +
      (expert_schedule_
           ? CachedExperts::address_bytes(*expert_schedule_, system_page)
           : 0) +
      (kKvRing + 1) * (layout.old_stride() + 2 * kKvAlignment) +
      KvShelf::address_bytes(layout, plan_.kv_reuse_bytes) + 4 * system_page;
  if (stock()) stock_kv_bytes_ = plan_.kv_bytes;
  FLASH_ASSIGN_OR_RETURN(
      arena_, Arena::create(addresses, arena_budget(plan_.ram_bytes)));
  if (!stock()) {
    FLASH_ASSIGN_OR_RETURN(kv_pool_, KvPool::create(*arena_, layout, blocks));
  }
  FLASH_RETURN_IF_ERROR(open_kv_file(layout, hooks));
  FLASH_RETURN_IF_ERROR(start_streams(hooks));
  FLASH_RETURN_IF_ERROR(open_prefixes(layout, hooks));
  if (stock()) {
    context_.reserve_scratch(
        1, 1, pool_->threads(), kernels::matmul_scratch_bytes());
  } else {
    reserve_scratch(kDecodeRows);
  }
  watch_memory(hooks);
  return Status();
}

// Everything that reads from disk.
Status Core::start_streams(const Hooks& hooks) {
  ReadQueueOptions options;
  options.depth = static_cast<int>(plan_.queue_depth);
  options.depth_max = 32;
  if (config_.queue_depth > 0) {
    options.depth = config_.queue_depth;
    options.depth_max = 0;
  }
  options.bytes_per_s = config_.disk_limit_bytes_per_s;
  queue_ = make_read_queue(io_kind(config_.io), options);
  if (hooks.wrap_queue) queue_ = hooks.wrap_queue(std::move(queue_));
  if (trace_) queue_ = make_traced_read_queue(std::move(queue_), *trace_);
  FLASH_ASSIGN_OR_RETURN(
      tiles_,
      TileStream::create(*schedule_,
                         plan_,
                         *arena_,
                         *queue_,
                         files_,
                         {.read_ahead = config_.read_ahead,
                          .controller = config_.bandwidth_controller}));
  if (trace_) {
    tiles_ = make_traced_tile_stream(
        std::move(tiles_), *schedule_, *queue_, *trace_);
  }
  FLASH_ASSIGN_OR_RETURN(
      rows_,
      RowReader::create(schedule_->matrices()[model_->embedding().matrix],
                        alignment_,
                        files_,
                        *queue_));
  if (expert_schedule_) {
    FLASH_ASSIGN_OR_RETURN(experts_,
                           CachedExperts::create(*expert_schedule_,
                                                 plan_.expert_bytes,
                                                 *arena_,
                                                 *queue_,
                                                 files_,
                                                 look_ahead(config_)));
    if (learnt_.known() != nullptr) {
      experts_->restore(learnt_.known()->state());
    }
    context_.expert_layers = expert_layers_;
    context_.experts = experts_.get();
    if (trace_) {
      wrapped_experts_ = make_traced_expert_stream(*experts_, *queue_, *trace_);
      context_.experts = wrapped_experts_.get();
    }
  }
  weights_.emplace(plan_,
                   arena_->page_bytes(),
                   *schedule_,
                   *tiles_,
                   expert_schedule_ ? &*expert_schedule_ : nullptr,
                   experts_.get());
  if (kv_file_) {
    FLASH_ASSIGN_OR_RETURN(kv_reader_,
                           KvReader::create(*arena_, *queue_, *kv_file_));
    kv_pool_->attach(kv_file_.get(), kv_reader_.get(), old_kv_limit());
  }
  context_.tiles = tiles_.get();
  context_.rows = rows_.get();
  if (experts_ && hooks.wrap_experts) {
    wrapped_experts_ = hooks.wrap_experts(*experts_, expert_layers_, files_);
    context_.experts = wrapped_experts_.get();
  }
  return Status();
}

Status Core::open_kv_file(const KvLayout& layout, const Hooks& hooks) {
  write_kv_ = hooks.write_kv;
  if (plan_.kv_disk_bytes_max == 0) return Status();
  uint64_t limit = config_.kv_disk_limit;
  if (limit > 0) {
    // Earlier requests' blocks are on the same disk.
    if (config_.kv_reuse_bytes >= limit) {
      return invalid_input(fmt::format(
          "--kv-reuse {} leaves nothing of --kv-disk-limit {} to the context",
          format_size(config_.kv_reuse_bytes),
          format_size(limit)));
    }
    limit -= config_.kv_reuse_bytes;
  }
  FLASH_ASSIGN_OR_RETURN(kv_file_,
                         KvFile::create({.folder = config_.kv_dir,
                                         .payload_bytes = layout.old_bytes(),
                                         .limit_bytes = limit,
                                         .write = hooks.write_kv}));
  return Status();
}

// What the plan's KV bytes leave to old blocks beside what is always there.
uint64_t Core::old_kv_limit() const {
  return plan_.kv_bytes_max > costs_.kv_floor_bytes
             ? plan_.kv_bytes_max - costs_.kv_floor_bytes
             : 0;
}

Result<uint64_t> Core::write_trace(const std::string& path) const {
  if (!trace_) {
    return invalid_input("no trace was recorded: set Config::trace_events");
  }
  FLASH_RETURN_IF_ERROR(trace_->write(path, [this](uint64_t tile) {
    return schedule_->matrices()[schedule_->tiles()[tile].matrix].name;
  }));
  return trace_->dropped();
}

}  // namespace mlx_flash
