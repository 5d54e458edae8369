// SPDX-License-Identifier: MIT
#pragma once

// Runs a language model in less memory than it has bytes.
//
//   auto engine = Engine::open({.model = "model.gguf", .ram_bytes = 64000000});
//   auto session = engine.value()->new_session();
//   auto ids = engine.value()->text().encode("Once upon a time", true);
//   for (const Piece& piece : session->generate(*ids, {.max_tokens = 50})) {
//     std::cout << piece.text << std::flush;
//   }
//
// Threads: an Engine and its Sessions belong to the thread that opened the
// engine (MLX's streams do); only Session::interrupt() may be called from
// another thread or a signal handler. Two engines in one process are fine.

#include <cstdint>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "mlx_flash/config.h"
#include "mlx_flash/stats.h"
#include "mlx_flash/status.h"
#include "mlx_flash/text.h"

namespace mlx_flash {

class Session;

struct SamplingOptions {
  float temperature = 0;  // 0: greedy
  float top_p = 1;
  int top_k = 0;  // 0: off
  float min_p = 0;
  float repeat_penalty = 1;
  int repeat_window = 64;  // tokens looked back at by the penalty
  uint64_t seed = 0;
};

struct GenerateOptions {
  SamplingOptions sampling = {};
  int64_t max_tokens = 256;
  std::vector<std::string> stop = {};  // stop strings; not part of the text
  bool ignore_eos = false;

  // Called on the engine's thread while the prompt is read, with the tokens fed
  // so far; those under way count by the layers they have passed. May be empty.
  std::function<void(size_t done, size_t total)> prefill_progress = nullptr;
};

enum class FinishReason { kNone, kStop, kLength, kInterrupted, kError };
const char* finish_reason_name(FinishReason reason);  // "stop", "length", ...

// Text that is certain: whole characters, no part of a stop string.
struct Piece {
  std::string text;
  std::vector<int32_t> tokens;  // ids decoded since the piece before
};

// One answer being written. A single-pass range of pieces.
class Generation {
 public:
  Generation(Generation&&) noexcept;
  ~Generation();

  // The next piece; nothing when the answer is over (see finish_reason()).
  std::optional<Piece> next();

  FinishReason finish_reason() const;
  const Status& status() const;                // why, if kError
  const std::vector<int32_t>& tokens() const;  // generated so far
  const GenerationStats& stats() const;

  class Iterator {
   public:
    explicit Iterator(Generation* generation);
    const Piece& operator*() const { return *piece_; }
    Iterator& operator++();
    bool operator==(std::default_sentinel_t) const { return !piece_; }

   private:
    Generation* generation_;
    std::optional<Piece> piece_;
  };
  Iterator begin() { return Iterator(this); }
  std::default_sentinel_t end() const { return {}; }

 private:
  friend class Session;
  struct Impl;
  explicit Generation(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Engine {
 public:
  // Reads headers, tokenizer and small tensors, plans, and starts streaming.
  // A budget that cannot work is refused with the smallest one that can.
  static Result<std::unique_ptr<Engine>> open(const Config& config);

  // Only plans: reads headers, runs nothing.
  static Result<PlanSummary> plan_only(const Config& config);

  ~Engine();

  std::unique_ptr<Session> new_session();

  const Text& text() const;
  const PlanSummary& plan() const;
  StreamCounters counters() const;
  Kernels kernels() const;  // fast or stock, never auto
  int threads() const;
  size_t vocab_size() const;
  const std::string& model_type() const;

  // Changes the budget while running; sessions keep their context. Refused,
  // and nothing changed, if it cannot work.
  // 0: what the machine has. Between forwards the budget also follows what the
  // machine and its control groups allow, down at once and up after a while,
  // but never above what was asked for.
  Status set_ram(uint64_t ram_bytes);

  // The same at the next token, from any thread. A budget that cannot work is
  // refused with a warning.
  void set_limit(uint64_t ram_bytes);

  // Writes what was recorded since open() (Config::trace_events) as a Chrome
  // trace, which ui.perfetto.dev opens. Returns the number of events that found
  // no place. Fails if nothing was to be recorded, or with path and reason.
  Result<uint64_t> write_trace(const std::string& path) const;

  struct Impl;
  Impl& impl() { return *impl_; }  // for code inside this project

 private:
  Engine();
  std::unique_ptr<Impl> impl_;
};

// One conversation: the tokens so far and their KV cache, nothing else.
class Session {
 public:
  ~Session();

  // Tokens whose keys and values are cached.
  size_t position() const;
  const std::vector<int32_t>& tokens() const;

  // Forgets everything from `position` on. REQUIRES: position <= position().
  Status truncate(size_t position);

  // Appends `prompt` and writes an answer. The generation borrows the session.
  // Fails (finish_reason kError) on an empty prompt with an empty session or
  // a prompt longer than the context.
  Generation generate(std::span<const int32_t> prompt,
                      const GenerateOptions& options);

  // Appends tokens; calls `row` for each with its position and its logits,
  // float32 [vocab_size], valid during the call. `chunks`: lengths of the
  // successive forwards, the last repeats; empty: as planned.
  using LogitsFn =
      std::function<void(size_t position, std::span<const float> logits)>;
  Status forward(std::span<const int32_t> tokens,
                 std::span<const uint32_t> chunks,
                 const LogitsFn& row);

  // Writes the tokens, their cache and `note` to a file that takes the place of
  // `path` at once, or not at all (docs/KV.md). Needs the fast kernels.
  Status save(const std::string& path, const std::string& note = {});
  // Takes the place of everything in the session. A file that is not there, is
  // damaged or of another model gives less, or nothing, and no failure: what
  // is missing is computed. Fails for a path that holds something else.
  Result<RestoredSession> restore(const std::string& path);

  // Stops a running generate() or forward() at the next tile, or the next one
  // if none runs: its status is kCancelled or its finish reason kInterrupted.
  // Async-signal-safe.
  void interrupt();
  // Forgets an interrupt() that has stopped nothing yet.
  void clear_interrupt();

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  friend class Engine;
  explicit Session(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mlx_flash
