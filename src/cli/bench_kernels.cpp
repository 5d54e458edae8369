// SPDX-License-Identifier: MIT
#include "cli/bench_kernels.h"

#include <fmt/format.h>

#include "base/cpu.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "cli/console.h"
#include "cli/progress.h"
#include "kernels/measure.h"
#include "kernels/vector_ops.h"

namespace mlx_flash {
namespace {

using kernels::KernelSpeed;
using kernels::KernelSpeeds;

constexpr double kGiga = 1e9;

Json to_json(const KernelSpeeds& speeds, int threads) {
  Json rows = Json::array();
  for (const KernelSpeed& k : speeds.kernels) {
    rows.push_back({{"format", format_name(k.format)},
                    {"rows", k.rows},
                    {"cols", k.cols},
                    {"t", k.tokens},
                    {"gb_s", k.bytes_per_s / kGiga},
                    {"dram_share", k.dram_share},
                    {"gflops", k.flops / kGiga},
                    {"mix_share", k.mix_share}});
  }
  return {{"dram_read_gb_s", speeds.dram_bytes_per_s / kGiga},
          {"fma_gflops", speeds.fma_flops / kGiga},
          {"threads", threads},
          {"instruction_set", kernels::target_name()},
          {"invariance_cost", speeds.invariance_cost},
          {"kernels", std::move(rows)}};
}

// One line for each format: GB/s of weights for one token, GFLOP/s for more,
// and for the most their share of what the instructions can do.
std::string table(const KernelSpeeds& speeds,
                  const std::vector<size_t>& tokens,
                  int threads) {
  std::string text = fmt::format(
      "{}, {}: memory is read at {:.1f} GB/s, float32 multiply-adds give "
      "{:.0f} GFLOP/s\n"
      "The same bits for any batch cost {:.1f}% at {} tokens\n\n",
      kernels::target_name(),
      threads == 1 ? "1 thread" : fmt::format("{} threads", threads),
      speeds.dram_bytes_per_s / kGiga,
      speeds.fma_flops / kGiga,
      100 * speeds.invariance_cost,
      tokens.back());
  text += fmt::format("{:<26}{:>18}", "GFLOP/s for so many tokens", "1");
  for (size_t i = 1; i < tokens.size(); ++i) {
    text += fmt::format("{:>7}", tokens[i]);
  }
  text += "  of peak\n";
  for (size_t i = 0; i < speeds.kernels.size(); ++i) {
    const KernelSpeed& k = speeds.kernels[i];
    if (k.tokens == tokens.front()) {
      text += fmt::format("{:<26}{:>6.1f} GB/s{:>6.0f}%",
                          format_name(k.format),
                          k.bytes_per_s / kGiga,
                          100 * k.dram_share);
    } else {
      text += fmt::format("{:>7.0f}", k.flops / kGiga);
    }
    if (k.tokens == tokens.back()) {
      text += fmt::format("{:>8.0f}%\n", 100 * k.mix_share);
    }
  }
  return text;
}

}  // namespace

Result<int> bench_kernels(const BenchKernelsOptions& options) {
  if (!kernels::supported()) {
    return unsupported(
        "this processor has no instruction set the fast kernels can run on "
        "(AVX2 with FMA, or NEON)");
  }
  kernels::MeasureOptions measure;
  std::erase_if(measure.formats, [&](const WeightFormat& format) {
    return format_name(format).find(options.only) == std::string::npos;
  });
  if (measure.formats.empty()) {
    return invalid_input(fmt::format(
        "--only: no weight format has '{}' in its name", options.only));
  }
  Progress progress("measuring", "figures", !options.quiet);
  measure.progress = [&](size_t done, size_t total) {
    progress.update(done, total);
    return true;
  };
  ThreadPool pool(options.threads > 0 ? options.threads : usable_cpus());
  const KernelSpeeds speeds = kernels::measure_kernels(pool, measure);
  progress.clear();
  FLASH_RETURN_IF_ERROR(
      options.json
          ? write_json_line(to_json(speeds, pool.threads()))
          : write_stdout(table(speeds, measure.tokens, pool.threads())));
  return 0;
}

}  // namespace mlx_flash
