// SPDX-License-Identifier: MIT
#include "cli/bench_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "cli/bench_disk.h"
#include "cli/console.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/signals.h"
#include "cli/text_input.h"

namespace mlx_flash {
namespace {

struct Run {
  GenerationStats stats;
  std::vector<int32_t> tokens;
  std::string text;
  FinishReason reason = FinishReason::kNone;
  bool cold = false;  // nothing was in memory before it
};

// Ids spread over the vocabulary, the same in every run: a step that shares no
// factor with a power of two.
std::vector<int32_t> spread_ids(size_t count, size_t vocab_size) {
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>((i * 7919 + 1) % vocab_size);
  }
  return ids;
}

Result<Run> run_once(Engine& engine,
                     const std::vector<int32_t>& ids,
                     uint32_t max_tokens,
                     SignalScope& signals,
                     Progress& progress) {
  const auto session = engine.new_session();
  signals.watch(session.get());
  const size_t total = ids.size() + max_tokens;
  GenerateOptions generate;
  generate.max_tokens = max_tokens;
  generate.ignore_eos = true;
  generate.prefill_progress = [&](size_t done, size_t) {
    progress.update(done, total);
  };
  Generation generation = session->generate(ids, generate);
  Run run;
  while (const auto piece = generation.next()) {
    run.text += piece->text;
    progress.update(ids.size() + generation.tokens().size(), total);
  }
  signals.watch(nullptr);
  if (generation.finish_reason() == FinishReason::kError) {
    return generation.status();
  }
  run.stats = generation.stats();
  run.tokens = generation.tokens();
  run.reason = generation.finish_reason();
  return run;
}

Result<std::vector<Run>> run_all(const BenchModelOptions& options,
                                 Engine& engine,
                                 SignalScope& signals) {
  const auto ids = spread_ids(options.prompt_tokens, engine.vocab_size());
  FLASH_RETURN_IF_ERROR(check_prompt_ids(engine, ids));
  Progress progress("measuring", "tokens", !options.engine.quiet);
  const auto once = [&](uint32_t max_tokens) {
    return run_once(engine, ids, max_tokens, signals, progress);
  };
  bool cold = true;
  if (options.warm_up) {
    // What is to stay in memory is there after it.
    const auto warm = once(1);
    if (!warm.ok()) return warm.status();
    cold = false;
  }
  std::vector<Run> runs;
  while (runs.size() < options.runs && signals.caught() == 0) {
    FLASH_ASSIGN_OR_RETURN(Run run, once(options.generated_tokens));
    run.cold = std::exchange(cold, false);
    runs.push_back(std::move(run));
  }
  progress.clear();
  return runs;
}

Json to_json(const Run& run) {
  return Json{{"cold", run.cold},
              {"prefill_tok_s", run.stats.prefill_tok_s},
              {"prefill_bytes_read", run.stats.prefill_bytes_read},
              {"decode_tok_s", run.stats.decode_tok_s},
              {"decode_io_wait_s", run.stats.decode_io_wait_s},
              {"decode_compute_s", run.stats.decode_compute_s},
              {"bytes_read_per_token", run.stats.bytes_read_per_token}};
}

std::string runs_table(const std::vector<Run>& runs) {
  std::string text = "each run                prompt        answer\n";
  for (const Run& run : runs) {
    text += fmt::format("  {:<18}{:>8.2f} tok/s{:>8.2f} tok/s\n",
                        run.cold ? "cold" : "warm",
                        run.stats.prefill_tok_s,
                        run.stats.decode_tok_s);
  }
  return text;
}

std::string probe_table(double bytes_per_s, const DiskUse& use) {
  return fmt::format(
      "  {:<24}{}/s, decoding had {:.1f}% of it\n"
      "  {:<24}{:.1f}% of what can be hidden is\n"
      "  {:<24}{:.1f}% of the time of decoding\n",
      "disk alone",
      format_bytes(bytes_per_s),
      use.share * 100,
      "reads beside computing",
      use.overlap * 100,
      "computing waited",
      use.stall * 100);
}

// The first run has read what is to stay in memory: where there are others,
// they are the ones that count.
const Run& choose(const std::vector<Run>& runs) {
  const size_t skip = runs.size() > 1 && runs[0].cold ? 1 : 0;
  std::vector<GenerationStats> stats;
  for (size_t i = skip; i < runs.size(); ++i) stats.push_back(runs[i].stats);
  return runs[skip + median_run(stats)];
}

Status print(const BenchModelOptions& options,
             const RunReport& report,
             const std::vector<Run>& runs,
             const Run& chosen,
             std::optional<double> disk) {
  const DiskUse use = disk ? disk_use(chosen.stats, *disk) : DiskUse{};
  if (options.json) {
    Json json = run_json(report, chosen.tokens, chosen.text, chosen.reason);
    json["runs"] = Json::array();
    for (const Run& run : runs) json["runs"].push_back(to_json(run));
    if (disk) {
      json["probe"] = {{"disk_bytes_per_s", *disk},
                       {"share", use.share},
                       {"overlap", use.overlap},
                       {"stall", use.stall}};
    }
    return write_json_line(json);
  }
  std::string text = stats_table(report);
  if (disk) text += probe_table(*disk, use);
  if (runs.size() > 1) text += runs_table(runs);
  return write_stdout(text);
}

}  // namespace

DiskUse disk_use(const GenerationStats& stats, double disk_bytes_per_s) {
  if (stats.decode_s <= 0 || disk_bytes_per_s <= 0) return {};
  const auto bytes = static_cast<double>(stats.decode_bytes_read);
  const double read_s = bytes / disk_bytes_per_s;
  const double compute_s = stats.decode_compute_s;
  DiskUse use;
  use.share = read_s / stats.decode_s;
  use.stall = std::min(1.0, stats.decode_io_wait_s / stats.decode_s);
  const double shorter = std::min(read_s, compute_s);
  const double hidden = read_s + compute_s - stats.decode_s;
  use.overlap = shorter > 0 ? std::clamp(hidden / shorter, 0.0, 1.0) : 1;
  return use;
}

size_t median_run(std::span<const GenerationStats> runs) {
  FLASH_CHECK(!runs.empty());
  std::vector<size_t> order(runs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return runs[a].decode_tok_s < runs[b].decode_tok_s;
  });
  return order[(order.size() - 1) / 2];
}

Result<int> bench_model(const BenchModelOptions& options) {
  FLASH_ASSIGN_OR_RETURN(Config config, options.engine.resolve_config());
  if (config.context == 0) {
    config.context = options.prompt_tokens + options.generated_tokens;
  }
  SignalScope signals(SignalScope::Mode::kOnce);
  const double start_s = now_seconds();
  FLASH_ASSIGN_OR_RETURN(auto engine, Engine::open(config));
  const double load_s = now_seconds() - start_s;
  FLASH_ASSIGN_OR_RETURN(const std::vector<Run> runs,
                         run_all(options, *engine, signals));
  if (runs.empty()) return signals.exit_code();
  FLASH_RETURN_IF_ERROR(options.engine.write_trace(*engine));
  const Run& chosen = choose(runs);
  const RunReport report = make_report(
      *engine, options.engine.name(config.model), chosen.stats, load_s);
  std::optional<double> disk;
  if (options.probe && signals.caught() == 0) {
    engine.reset();  // its memory is the probe's now
    FLASH_ASSIGN_OR_RETURN(disk, disk_speed(config.model, config.io));
  }
  FLASH_RETURN_IF_ERROR(print(options, report, runs, chosen, disk));
  return signals.caught() != 0 ? signals.exit_code() : 0;
}

}  // namespace mlx_flash
