// SPDX-License-Identifier: MIT
#include "cli/report.h"

#include <fmt/format.h>

#include <utility>

#include "base/memory.h"
#include "cli/console.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

std::string bytes(uint64_t n) {
  return format_bytes(static_cast<double>(n));
}

// 0 where the system does not say.
uint64_t peak_bytes() {
  const auto memory = process_memory();
  return memory.ok() ? memory->resident_peak_bytes : 0;
}

// What storage delivered to this process; null where the system does not say.
Json storage_bytes() {
  const auto bytes = process_read_bytes();
  return bytes.ok() ? Json(*bytes) : Json();
}

// Two columns, the second aligned.
class Table {
 public:
  void row(const std::string& name, const std::string& value) {
    text_ += fmt::format("  {:<24}{}\n", name, value);
  }
  void head(const std::string& title) { text_ += title + "\n"; }
  std::string take() { return std::move(text_); }

 private:
  std::string text_;
};

std::string rate(double tokens_per_s, uint64_t tokens) {
  if (tokens_per_s <= 0) return fmt::format("{} tokens", tokens);
  return fmt::format("{} tokens, {:.1f} tok/s", tokens, tokens_per_s);
}

double share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0
                    : static_cast<double>(part) / static_cast<double>(whole);
}

// Of what was read ahead and whose turn has come.
double precision(const ExpertCounters& experts) {
  return share(experts.ahead_used_bytes,
               experts.ahead_used_bytes + experts.ahead_wasted_bytes);
}

void add_experts(Table& table,
                 const GenerationStats& stats,
                 const ExpertCounters& experts) {
  table.row("experts of one token",
            fmt::format("{}, {:.1f}% in memory",
                        format_bytes(stats.expert_bytes_per_token),
                        100 * stats.expert_hit_rate));
  table.row(
      "experts in memory",
      fmt::format(
          "{}, {} evictions", bytes(experts.cache_bytes), experts.evictions));
  table.row("experts read ahead",
            fmt::format("{}, {:.0f}% used, {} wasted",
                        bytes(experts.ahead_bytes),
                        100 * precision(experts),
                        bytes(experts.ahead_wasted_bytes)));
}

Json experts_json(const ExpertCounters& experts) {
  return Json{
      {"used", experts.used},
      {"hits", experts.hits},
      {"hit_rate", share(experts.hit_bytes, experts.used_bytes)},
      {"used_bytes", experts.used_bytes},
      {"hit_bytes", experts.hit_bytes},
      {"evictions", experts.evictions},
      {"bytes_read", experts.bytes_read},
      {"prefetch_bytes", experts.ahead_bytes},
      {"prefetch_used_bytes", experts.ahead_used_bytes},
      {"prefetch_wasted_bytes", experts.ahead_wasted_bytes},
      {"prefetch_precision", precision(experts)},
      {"prefetch_trials", experts.ahead_trials},
      {"prefetch_passes", experts.ahead_passes},
      {"prefetch_gain", experts.ahead_gain},
      {"cache_bytes", experts.cache_bytes},
      {"wait_s", experts.wait_s},
  };
}

}  // namespace

RunReport make_report(const Engine& engine,
                      const std::string& model,
                      const GenerationStats& stats,
                      double load_s) {
  return {.model = model,
          .plan = engine.plan(),
          .stats = stats,
          .counters = engine.counters(),
          .load_s = load_s,
          .peak_rss_bytes = peak_bytes(),
          .kernels = engine.kernels(),
          .threads = engine.threads()};
}

Json run_json(const RunReport& report,
              const std::vector<int32_t>& tokens,
              const std::string& text,
              FinishReason reason) {
  const GenerationStats& stats = report.stats;
  return Json{
      {"model", report.model},
      {"weights_bytes", report.plan.weights_bytes},
      {"ram_bytes", report.plan.ram_bytes},
      {"pinned_bytes", report.plan.pinned_bytes},
      {"prompt_tokens", stats.prompt_tokens},
      {"generated_tokens", stats.generated_tokens},
      {"tokens", tokens},
      {"text", text},
      {"finish_reason", finish_reason_name(reason)},
      {"load_s", report.load_s},
      {"ttft_s", stats.ttft_s},
      {"prefill_tok_s", stats.prefill_tok_s},
      {"decode_tok_s", stats.decode_tok_s},
      {"pass_bytes", report.plan.pass_bytes},
      {"bytes_read", report.counters.bytes_read},
      {"bytes_read_per_token", stats.bytes_read_per_token},
      {"prefill_bytes_read", stats.prefill_bytes_read},
      {"io_wait_s", stats.io_wait_s},
      {"compute_s", stats.compute_s},
      {"disk_bytes_per_s", stats.disk_bytes_per_s},
      {"peak_rss_bytes", report.peak_rss_bytes},
      {"kernels", kernels_name(report.kernels)},
      {"threads", report.threads},
      {"prefill_s", stats.prefill_s},
      {"decode_s", stats.decode_s},
      {"decode_io_wait_s", stats.decode_io_wait_s},
      {"decode_compute_s", stats.decode_compute_s},
      {"decode_bytes_read", stats.decode_bytes_read},
      {"kv_bytes_read_per_token", stats.kv_bytes_read_per_token},
      {"process_read_bytes", storage_bytes()},
      {"cached_tokens", stats.cached_tokens},
      {"reused_tokens", stats.reused_tokens},
      {"expert_bytes_per_token", stats.expert_bytes_per_token},
      {"expert_hit_rate", stats.expert_hit_rate},
      {"plan", plan_json(report.plan)},
      {"stats", counters_json(report.counters)},
  };
}

std::string figures_line(const RunReport& report) {
  std::string line = fmt::format("model: {} | {} weights in {}",
                                 one_line(report.model),
                                 bytes(report.plan.weights_bytes),
                                 bytes(report.plan.ram_bytes));
  if (report.stats.decode_tok_s > 0) {
    line += fmt::format(" | {:.1f} tok/s | {} read per token",
                        report.stats.decode_tok_s,
                        format_bytes(report.stats.bytes_read_per_token));
  }
  return line + fmt::format(" | peak {}", bytes(report.peak_rss_bytes));
}

std::string stats_table(const RunReport& report) {
  const GenerationStats& stats = report.stats;
  const StreamCounters& counters = report.counters;
  Table table;
  table.head(fmt::format("{} ({} kernels, {} threads)",
                         one_line(report.model),
                         kernels_name(report.kernels),
                         report.threads));
  table.row("weights", bytes(report.plan.weights_bytes));
  table.row("touched by one token", bytes(report.plan.pass_bytes));
  table.row("kept in memory", bytes(report.plan.pinned_bytes));
  table.row("budget", bytes(report.plan.ram_bytes));
  table.row("peak memory", bytes(report.peak_rss_bytes));
  table.row("load", format_seconds(report.load_s));
  table.row("prompt", rate(stats.prefill_tok_s, stats.prompt_tokens));
  table.row("first token after", format_seconds(stats.ttft_s));
  table.row("answer", rate(stats.decode_tok_s, stats.generated_tokens));
  table.row("read for the prompt", bytes(stats.prefill_bytes_read));
  table.row("read per token", format_bytes(stats.bytes_read_per_token));
  table.row("read in all", bytes(counters.bytes_read));
  if (counters.experts.used > 0) add_experts(table, stats, counters.experts);
  table.row("KV cache in memory", bytes(counters.kv_ram_bytes));
  if (counters.kv_bytes_written > 0) {
    table.row("KV cache on disk", bytes(counters.kv_disk_bytes));
    table.row("KV read per token", format_bytes(stats.kv_bytes_read_per_token));
  }
  if (counters.kv_reuse_bytes > 0) {
    table.row("KV kept for reuse", bytes(counters.kv_reuse_bytes));
    table.row("tokens reused", std::to_string(counters.kv_reused_tokens));
  }
  table.row("disk while decoding", format_bytes(stats.disk_bytes_per_s) + "/s");
  table.row("waited for the disk", fmt::format("{:.2f} s", stats.io_wait_s));
  table.row("computed", fmt::format("{:.2f} s", stats.compute_s));
  table.row("tiles",
            fmt::format("{} streamed, {} from memory, {} out of order",
                        counters.tiles_streamed,
                        counters.tiles_pinned,
                        counters.misses));
  table.row(
      "passes",
      fmt::format(
          "{}, {} with paced reads", counters.passes, counters.paced_passes));
  return table.take();
}

Json plan_json(const PlanSummary& plan) {
  return Json{
      {"weights_bytes", plan.weights_bytes},
      {"pass_bytes", plan.pass_bytes},
      {"ram_bytes", plan.ram_bytes},
      {"ram_min_bytes", plan.ram_min_bytes},
      {"pinned_bytes", plan.pinned_bytes},
      {"streamed_bytes", plan.streamed_bytes},
      {"ring_bytes", plan.ring_bytes},
      {"kv_bytes", plan.kv_bytes},
      {"activation_bytes", plan.activation_bytes},
      {"runtime_bytes", plan.runtime_bytes},
      {"predicted_peak_bytes", plan.predicted_peak_bytes},
      {"predicted_decode_tok_s", plan.predicted_decode_tok_s},
      {"disk_bytes_per_s", plan.disk_bytes_per_s},
      {"fits", plan.ram_bytes >= plan.ram_min_bytes},
      {"expert_bytes", plan.expert_bytes},
      {"expert_cache_bytes", plan.expert_cache_bytes},
      {"expert_token_bytes", plan.expert_token_bytes},
      {"expert_hit_rate", plan.expert_hit_rate},
      {"kv_bytes_max", plan.kv_bytes_max},
      {"kv_disk_bytes_max", plan.kv_disk_bytes_max},
      {"kv_reuse_bytes", plan.kv_reuse_bytes},
      {"predicted_full_tok_s", plan.predicted_full_tok_s},
      {"context", plan.context},
      {"prefill_rows", plan.prefill_rows},
      {"prefill_activation_bytes", plan.prefill_activation_bytes},
      {"ring_slots", plan.ring_slots},
      {"tile_bytes", plan.tile_bytes},
      {"queue_depth", plan.queue_depth},
  };
}

std::string plan_table(const PlanSummary& plan, const std::string& model) {
  const bool fits = plan.ram_bytes >= plan.ram_min_bytes;
  Table table;
  table.head(fmt::format("{} in {}", one_line(model), bytes(plan.ram_bytes)));
  table.row("weights", bytes(plan.weights_bytes));
  table.row("touched by one token", bytes(plan.pass_bytes));
  if (!fits) {
    table.row("smallest budget", bytes(plan.ram_min_bytes));
    table.row("fits", "no");
    return table.take();
  }
  table.row("kept in memory", bytes(plan.pinned_bytes));
  table.row("read for each token", bytes(plan.streamed_bytes));
  if (plan.expert_bytes > 0) {
    table.row("experts",
              fmt::format("{}, {} in memory",
                          bytes(plan.expert_bytes),
                          bytes(plan.expert_cache_bytes)));
    table.row("experts of one token",
              fmt::format("{}, {:.0f}% expected in memory once {} were read",
                          bytes(plan.expert_token_bytes),
                          100 * plan.expert_hit_rate,
                          bytes(plan.expert_cache_bytes)));
  }
  table.row("ring",
            fmt::format("{} ({} slots, tiles of at most {}, {} reads at once)",
                        bytes(plan.ring_bytes),
                        plan.ring_slots,
                        bytes(plan.tile_bytes),
                        plan.queue_depth));
  table.row("KV cache",
            fmt::format("{} ({} tokens)", bytes(plan.kv_bytes), plan.context));
  if (plan.kv_disk_bytes_max > 0) {
    table.row(
        "KV cache on disk",
        fmt::format(
            "{} at {} tokens", bytes(plan.kv_disk_bytes_max), plan.context));
  }
  if (plan.kv_reuse_bytes > 0) {
    table.row("KV kept for reuse", bytes(plan.kv_reuse_bytes) + " at most");
  }
  table.row("activations",
            fmt::format("{}, {} more for prompts (in pieces of {})",
                        bytes(plan.activation_bytes),
                        bytes(plan.prefill_activation_bytes),
                        plan.prefill_rows));
  table.row("program and libraries", bytes(plan.runtime_bytes));
  table.row("predicted peak", bytes(plan.predicted_peak_bytes));
  table.row("smallest budget", bytes(plan.ram_min_bytes));
  if (plan.disk_bytes_per_s > 0) {
    table.row("disk", format_bytes(plan.disk_bytes_per_s) + "/s");
  }
  if (plan.predicted_decode_tok_s > 0) {
    table.row("predicted speed",
              fmt::format("{:.3g} tok/s, {:.3g} at {} tokens",
                          plan.predicted_decode_tok_s,
                          plan.predicted_full_tok_s,
                          plan.context));
  }
  table.row("fits", "yes");
  return table.take();
}

Json counters_json(const StreamCounters& counters) {
  return Json{
      {"tiles_streamed", counters.tiles_streamed},
      {"tiles_pinned", counters.tiles_pinned},
      {"ring_wraps", counters.ring_wraps},
      {"misses", counters.misses},
      {"passes", counters.passes},
      {"bytes_read", counters.bytes_read},
      {"io_wait_s", counters.io_wait_s},
      {"compute_s", counters.compute_s},
      {"paced_passes", counters.paced_passes},
      {"pace_trials", counters.pace_trials},
      {"registered_reads", counters.registered_reads},
      {"kv_ram_bytes", counters.kv_ram_bytes},
      {"kv_disk_bytes", counters.kv_disk_bytes},
      {"kv_bytes_written", counters.kv_bytes_written},
      {"kv_bytes_read", counters.kv_bytes_read},
      {"kv_reuse_bytes", counters.kv_reuse_bytes},
      {"kv_reused_tokens", counters.kv_reused_tokens},
      {"experts", experts_json(counters.experts)},
  };
}

}  // namespace mlx_flash
