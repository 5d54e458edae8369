// SPDX-License-Identifier: MIT
#include <algorithm>
#include <optional>

#include "base/clock.h"
#include "engine/sampler.h"
#include "engine/session.h"
#include "mlx_flash/engine.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace mlx_flash {

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kInterrupted:
      return "interrupted";
    case FinishReason::kError:
      return "error";
  }
  return "none";
}

struct Generation::Impl {
  Impl(Session::Impl& s,
       std::span<const int32_t> prompt_ids,
       const GenerateOptions& o)
      : session(s),
        core(s.core),
        options(o),
        prompt(prompt_ids.begin(), prompt_ids.end()),
        sampler(o.sampling),
        best{sampler.ranked(), {}},
        stops(o.stop),
        start_time(now_seconds()),
        start(s.core.counters()) {
    if (const Tokenizer* tokenizer = core.text().tokenizer()) {
      detokenizer.emplace(*tokenizer, true);
    }
  }

  // Runs tokens; the last one's logits choose the next token.
  Status step(std::span<const int32_t> ids, bool is_prompt);
  void begin();
  void advance();                 // one more token, or the end
  void take(int32_t token);       // a sampled token becomes text
  void finish(FinishReason why);  // flushes text
  void fail(const Status& why);
  void measure();

  Session::Impl& session;  // outlives the generation
  Core& core;
  GenerateOptions options;
  std::vector<int32_t> prompt;
  Sampler sampler;
  BestTokens best;                         // of the last row
  std::optional<Detokenizer> detokenizer;  // none: ids only
  StopMatcher stops;

  bool started = false;
  int32_t sampled = 0;  // not yet run
  Piece piece;          // text and ids not handed out yet
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kNone;
  Status status;
  GenerationStats stats;
  double start_time;
  double first_time = 0;  // of the first token
  StreamCounters start;
  StreamCounters first;
};

Status Generation::Impl::step(std::span<const int32_t> ids, bool is_prompt) {
  const size_t last = session.tokens.size() + ids.size() - 1;
  // As mlx-lm: in stock the last token of a prompt is a forward of its own.
  std::vector<uint32_t> chunks;
  if (is_prompt && core.stock()) {
    size_t left = session.tokens.size() - session.state.length() + ids.size();
    while (left > 1) {
      const size_t n = std::min(core.prefill_rows(), left - 1);
      chunks.push_back(static_cast<uint32_t>(n));
      left -= n;
    }
    chunks.push_back(1);
  }
  return session.feed(
      ids,
      chunks,
      last,
      [&](size_t, std::span<const float> logits) {
        std::vector<int32_t> history;
        if (options.sampling.repeat_penalty != 1) {
          history = session.tokens;
          history.insert(history.end(), ids.begin(), ids.end());
        }
        sampled = sampler.sample(logits, history, best.list);
      },
      true,
      is_prompt ? options.prefill_progress : nullptr,
      best.most > 0 ? &best : nullptr);
}

void Generation::Impl::begin() {
  started = true;
  stats.prompt_tokens = prompt.size();
  stats.cached_tokens = session.state.known();
  if (const Status bad = check_sampling(options.sampling); !bad.ok()) {
    return fail(bad);
  }
  if (prompt.empty()) {
    return fail(
        invalid_input("the prompt is empty: there is nothing to continue"));
  }
  const uint64_t reused_before = core.counters().kv_reused_tokens;
  const size_t begun = session.begin_with(prompt);
  stats.reused_tokens = core.counters().kv_reused_tokens - reused_before;
  const auto rest = std::span<const int32_t>(prompt).subspan(begun);
  if (const Status bad = step(rest, true); !bad.ok()) return fail(bad);
  session.keep();
  first_time = now_seconds();
  first = core.counters();
  stats.ttft_s = stats.prefill_s = first_time - start_time;
  stats.prefill_tok_s =
      static_cast<double>(rest.size()) / std::max(stats.prefill_s, 1e-9);
  stats.prefill_bytes_read = first.bytes_read - start.bytes_read;
  if (options.max_tokens <= 0) return finish(FinishReason::kLength);
  take(sampled);
}

void Generation::Impl::advance() {
  if (!started) return begin();
  const int32_t token = sampled;
  if (core.config().kv_keep_tokens == 0 &&
      session.tokens.size() >= core.plan().context) {
    return finish(FinishReason::kLength);
  }
  if (const Status bad = step({&token, 1}, false); !bad.ok()) return fail(bad);
  take(sampled);
}

void Generation::Impl::take(int32_t token) {
  tokens.push_back(token);
  piece.tokens.push_back(token);
  const std::vector<int32_t>& eos = core.text().eos_ids();
  if (!options.ignore_eos &&
      std::find(eos.begin(), eos.end(), token) != eos.end()) {
    return finish(FinishReason::kStop);
  }
  if (detokenizer) piece.text += stops.push(detokenizer->push(token));
  if (stops.stopped()) return finish(FinishReason::kStop);
  if (static_cast<int64_t>(tokens.size()) >= options.max_tokens) {
    return finish(FinishReason::kLength);
  }
}

void Generation::Impl::finish(FinishReason why) {
  if (!stops.stopped()) {
    if (detokenizer) piece.text += stops.push(detokenizer->finish());
    // Text kept back that might have begun a stop string.
    piece.text += stops.finish();
    if (stops.stopped()) why = FinishReason::kStop;
  }
  reason = why;
  session.state.interrupted().store(false);
  measure();
  if (why != FinishReason::kError) session.keep();
}

void Generation::Impl::fail(const Status& why) {
  const bool interrupted = why.code() == StatusCode::kCancelled;
  status = interrupted ? Status() : why;
  finish(interrupted ? FinishReason::kInterrupted : FinishReason::kError);
  // finish() may have seen a stop string in the last text; a failure stays one.
  if (!interrupted) reason = FinishReason::kError;
}

void Generation::Impl::measure() {
  stats.generated_tokens = tokens.size();
  const StreamCounters now = core.counters();
  stats.io_wait_s = now.io_wait_s - start.io_wait_s;
  stats.compute_s = now.compute_s - start.compute_s;
  if (first_time == 0 || tokens.size() < 2) return;
  const double decoded = static_cast<double>(tokens.size() - 1);
  stats.decode_s = now_seconds() - first_time;
  stats.decode_tok_s = decoded / std::max(stats.decode_s, 1e-9);
  stats.decode_io_wait_s = now.io_wait_s - first.io_wait_s;
  stats.decode_compute_s = now.compute_s - first.compute_s;
  stats.decode_bytes_read = now.bytes_read - first.bytes_read;
  const auto bytes = static_cast<double>(stats.decode_bytes_read);
  stats.bytes_read_per_token = bytes / decoded;
  stats.kv_bytes_read_per_token =
      static_cast<double>(now.kv_bytes_read - first.kv_bytes_read) / decoded;
  stats.disk_bytes_per_s = bytes / std::max(stats.decode_s, 1e-9);
  const auto used =
      static_cast<double>(now.experts.used_bytes - first.experts.used_bytes);
  if (used == 0) return;
  stats.expert_bytes_per_token = used / decoded;
  stats.expert_hit_rate =
      static_cast<double>(now.experts.hit_bytes - first.experts.hit_bytes) /
      used;
}

Generation::Generation(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Generation::Generation(Generation&&) noexcept = default;
Generation::~Generation() = default;

std::optional<Piece> Generation::next() {
  Impl& impl = *impl_;
  while (impl.reason == FinishReason::kNone) {
    impl.advance();
    if (!impl.piece.text.empty()) break;
  }
  if (impl.piece.text.empty() && impl.piece.tokens.empty()) {
    return std::nullopt;
  }
  Piece piece = std::move(impl.piece);
  impl.piece = Piece();
  return piece;
}

FinishReason Generation::finish_reason() const {
  return impl_->reason;
}
const Status& Generation::status() const {
  return impl_->status;
}
const std::vector<int32_t>& Generation::tokens() const {
  return impl_->tokens;
}
const GenerationStats& Generation::stats() const {
  return impl_->stats;
}

Generation::Iterator::Iterator(Generation* generation)
    : generation_(generation), piece_(generation->next()) {}

Generation::Iterator& Generation::Iterator::operator++() {
  piece_ = generation_->next();
  return *this;
}

Generation Session::generate(std::span<const int32_t> prompt,
                             const GenerateOptions& options) {
  return Generation(
      std::make_unique<Generation::Impl>(*impl_, prompt, options));
}

}  // namespace mlx_flash
