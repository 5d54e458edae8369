// SPDX-License-Identifier: MIT
#pragma once

// The figures of a run, in the forms they are printed: JSON, one line, a table.
// Everything here was measured in this run or planned for it; nothing is
// computed but units.

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "mlx_flash/engine.h"
#include "mlx_flash/stats.h"

namespace mlx_flash {

struct RunReport {
  std::string model;
  PlanSummary plan;
  GenerationStats stats;
  StreamCounters counters;  // since the engine was opened
  double load_s = 0;
  uint64_t peak_rss_bytes = 0;
  Kernels kernels = Kernels::kAuto;
  int threads = 0;
};

// Takes what an engine knows; `stats` and `load_s` are the caller's.
RunReport make_report(const Engine& engine,
                      const std::string& model,
                      const GenerationStats& stats,
                      double load_s);

// The object of `run --json`, keys in the documented order, extras last.
Json run_json(const RunReport& report,
              const std::vector<int32_t>& tokens,
              const std::string& text,
              FinishReason reason);

// "model: NAME | 98.4 MB weights in 64 MB | 12.3 tok/s | ..."
std::string figures_line(const RunReport& report);

// The table of --stats, for stderr.
std::string stats_table(const RunReport& report);

Json plan_json(const PlanSummary& plan);
std::string plan_table(const PlanSummary& plan, const std::string& model);

// The "stats" object: the stream's counters.
Json counters_json(const StreamCounters& counters);

}  // namespace mlx_flash
