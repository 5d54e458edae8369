// SPDX-License-Identifier: MIT

// `mlx-flash score`: how likely a model finds a given text.

#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <utility>

#include "base/clock.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/logprob.h"
#include "cli/npy.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/report.h"
#include "cli/signals.h"
#include "cli/text_input.h"
#include "cli/values.h"

namespace mlx_flash {
namespace {

struct ScoreOptions {
  EngineOptions engine;
  TextOptions text;
  std::vector<uint32_t> chunks;
  std::string logits;  // .npy file
  uint32_t top = 0;
  bool json = false;
  bool stats = false;
};

// What the rows of logits add up to. Row i predicts token i + 1.
class Scores {
 public:
  Scores(std::span<const int32_t> ids, size_t top) : ids_(ids), top_(top) {
    logprobs_.push_back(nullptr);
    if (top_ > 0) best_.push_back(nullptr);
  }

  void add(size_t position, std::span<const float> logits) {
    const double log_sum = log_sum_exp(logits);
    Json best = Json::array();
    if (top_ > 0) {
      for (const Candidate& each : best_candidates(logits, log_sum, top_)) {
        best.push_back(Json{{"id", each.id}, {"logprob", each.logprob}});
      }
    }
    if (position + 1 == ids_.size()) {
      next_ = std::move(best);
      return;
    }
    const auto id = static_cast<size_t>(ids_[position + 1]);
    const double logprob = double{logits[id]} - log_sum;
    logprobs_.push_back(logprob);
    nll_ -= logprob;
    if (top_ > 0) best_.push_back(std::move(best));
  }

  // NaN where there is no token to predict.
  double nll_mean() const {
    return nll_ / static_cast<double>(ids_.size() - 1);
  }
  double perplexity() const { return std::exp(nll_mean()); }

  Json json() const {
    Json object{{"tokens", ids_}, {"logprobs", logprobs_}};
    object["nll_mean"] = ids_.size() > 1 ? Json(nll_mean()) : Json();
    object["perplexity"] = ids_.size() > 1 ? Json(perplexity()) : Json();
    if (top_ > 0) {
      object["top"] = best_;  // as logprobs: null for the first
      object["top_next"] = next_;
    }
    return object;
  }

 private:
  std::span<const int32_t> ids_;
  size_t top_;
  Json logprobs_ = Json::array();
  Json best_ = Json::array();
  Json next_;
  double nll_ = 0;
};

Result<std::vector<int32_t>> score_ids(const ScoreOptions& options,
                                       const std::string& text,
                                       const Engine& engine) {
  std::vector<int32_t> ids;
  if (options.text.ids.has_value()) {
    auto parsed = parse_ids(*options.text.ids);
    if (!parsed.ok()) return parsed.status().at("--ids");
    ids = std::move(parsed).value();
  } else {
    FLASH_ASSIGN_OR_RETURN(ids, engine.text().encode(text, true));
  }
  FLASH_RETURN_IF_ERROR(check_prompt_ids(engine, ids));
  return ids;
}

Status forward_all(const ScoreOptions& options,
                   Session& session,
                   std::span<const int32_t> ids,
                   NpyWriter* logits,
                   Scores& scores) {
  Status row_status;
  Progress progress("scoring", "tokens", !options.engine.quiet);
  const auto row = [&](size_t position, std::span<const float> values) {
    if (!row_status.ok()) return;
    scores.add(position, values);
    if (logits != nullptr) row_status = logits->write_row(values);
    if (!row_status.ok()) session.interrupt();
    progress.update(position + 1, ids.size());
  };
  Status status = session.forward(ids, options.chunks, row);
  // A failed write is why the forward was stopped.
  FLASH_RETURN_IF_ERROR(row_status);
  return status;
}

Status report_scores(const ScoreOptions& options,
                     const Scores& scores,
                     const RunReport& report,
                     size_t tokens) {
  if (options.stats) write_stderr(stats_table(report));
  if (options.json) {
    Json object = scores.json();
    object["model"] = report.model;
    object["peak_rss_bytes"] = report.peak_rss_bytes;
    object["stats"] = counters_json(report.counters);
    return write_json_line(object);
  }
  if (tokens < 2) return write_stdout("1 token: nothing to predict\n");
  return write_stdout(
      fmt::format("{} tokens | nll {:.6f} | perplexity {:.6f}\n",
                  tokens,
                  scores.nll_mean(),
                  scores.perplexity()));
}

Result<int> score(const ScoreOptions& options) {
  if (options.text.ids && (options.text.text || options.text.file)) {
    return invalid_input("more than one text: give one of --text-file, --ids");
  }
  std::string text;
  if (!options.text.ids) {
    FLASH_ASSIGN_OR_RETURN(text, read_plain_text(options.text));
    if (text.empty()) return invalid_input("the text is empty");
  }
  FLASH_ASSIGN_OR_RETURN(const Config config, options.engine.resolve_config());
  SignalScope signals(SignalScope::Mode::kOnce);
  const double start_s = now_seconds();
  FLASH_ASSIGN_OR_RETURN(const auto engine, Engine::open(config));
  const double load_s = now_seconds() - start_s;
  FLASH_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                         score_ids(options, text, *engine));

  std::unique_ptr<NpyWriter> logits;
  if (!options.logits.empty()) {
    FLASH_ASSIGN_OR_RETURN(
        logits,
        NpyWriter::create(options.logits, ids.size(), engine->vocab_size()));
  }
  const auto session = engine->new_session();
  signals.watch(session.get());
  Scores scores(ids, options.top);
  const double forward_s = now_seconds();
  const Status status =
      forward_all(options, *session, ids, logits.get(), scores);
  signals.watch(nullptr);
  FLASH_RETURN_IF_ERROR(options.engine.write_trace(*engine));
  if (signals.caught() != 0) return signals.exit_code();
  FLASH_RETURN_IF_ERROR(status);
  if (logits != nullptr) FLASH_RETURN_IF_ERROR(logits->finish());

  GenerationStats stats;
  stats.prompt_tokens = ids.size();
  stats.prefill_s = now_seconds() - forward_s;
  stats.prefill_tok_s = static_cast<double>(ids.size()) / stats.prefill_s;
  stats.prefill_bytes_read = engine->counters().bytes_read;
  stats.io_wait_s = engine->counters().io_wait_s;
  stats.compute_s = engine->counters().compute_s;
  const RunReport report =
      make_report(*engine, options.engine.name(config.model), stats, load_s);
  FLASH_RETURN_IF_ERROR(report_scores(options, scores, report, ids.size()));
  return 0;
}

}  // namespace

CommandFn add_score(CLI::App& app) {
  auto options = std::make_shared<ScoreOptions>();
  add_engine_options(app, options->engine);
  add_text_options(app, options->text);
  ScoreOptions& o = *options;
  add_value(app,
            "--top",
            "N",
            "With --json: the N best candidates at each position",
            [&o](const std::string& text) {
              return assign(parse_count(text, 0, 100000), o.top);
            })
      ->group("Output");
  add_value(app,
            "--logits",
            "F.npy",
            "Write the logits, float32 [positions, vocabulary]",
            [&o](const std::string& text) {
              o.logits = text;
              return text.empty() ? invalid_input("the path is empty")
                                  : Status();
            })
      ->group("Output");
  add_value(app,
            "--chunks",
            "37,1,1",
            "Lengths of the successive forwards; the last repeats",
            [&o](const std::string& text) {
              return assign(parse_chunks(text), o.chunks);
            })
      ->group("Advanced");
  app.add_flag("--json", options->json, "One JSON object on stdout")
      ->group("Output");
  app.add_flag("--stats", options->stats, "A table of figures on stderr")
      ->group("Output");
  return [options] { return score(*options); };
}

}  // namespace mlx_flash
