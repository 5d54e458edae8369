// SPDX-License-Identifier: MIT
#pragma once

// Measured and planned figures. Every number was measured in this run; a
// number that could not be measured is 0 and documented so.

#include <cstdint>
#include <string>

namespace mlx_flash {

// How a budget is spent; from the planner, before anything runs. Bytes.
struct PlanSummary {
  uint64_t weights_bytes = 0;   // all weights of the model
  uint64_t pass_bytes = 0;      // M: what one decode pass must touch
  uint64_t ram_bytes = 0;       // the budget
  uint64_t ram_min_bytes = 0;   // the smallest budget that works
  uint64_t pinned_bytes = 0;    // R: of the pass, kept in memory
  uint64_t streamed_bytes = 0;  // M - R: read for every token
  // Of a mixture: what its experts would take, the share of them that may stay
  // in memory, what one token uses of them (not part of pass_bytes), and how
  // much of that is expected to be in memory. So are the speeds below: of a run
  // that has filled the cache; before, it reads expert_cache_bytes more.
  uint64_t expert_bytes = 0;
  uint64_t expert_cache_bytes = 0;
  uint64_t expert_token_bytes = 0;
  double expert_hit_rate = 0;
  uint64_t ring_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t kv_bytes_max = 0;       // at the full context
  uint64_t kv_disk_bytes_max = 0;  // beyond it on disk, at the full context
  uint64_t kv_reuse_bytes = 0;     // of earlier requests, in memory, at most
  uint64_t activation_bytes = 0;   // while decoding
  // More while a prompt is read, lent by what is kept in memory.
  uint64_t prefill_activation_bytes = 0;
  uint64_t runtime_bytes = 0;  // code, tokenizer, libraries, small tensors
  uint64_t predicted_peak_bytes = 0;
  double predicted_decode_tok_s = 0;  // 0: disk speed unknown
  double predicted_full_tok_s = 0;    // with the context full
  double disk_bytes_per_s = 0;        // 0: unknown
  uint64_t context = 0;               // tokens
  uint32_t prefill_rows = 0;
  uint32_t ring_slots = 0;
  uint64_t tile_bytes = 0;
  uint32_t queue_depth = 0;  // reads under way, at first
};

// Counters of a mixture's experts since the engine was opened. They are counted
// in the pieces in which they lie in memory, mostly one for each expert.
struct ExpertCounters {
  uint64_t used = 0;  // pieces that layers asked for
  uint64_t hits = 0;  // of them in memory at that time
  uint64_t used_bytes = 0;
  uint64_t hit_bytes = 0;
  uint64_t evictions = 0;
  uint64_t bytes_read = 0;  // alignment slack included
  // Of bytes_read, before it was sure that they would be used: in all, what was
  // used and what was not.
  uint64_t ahead_bytes = 0;
  uint64_t ahead_used_bytes = 0;
  uint64_t ahead_wasted_bytes = 0;
  // How often that was tried, passes with it, and the share of time it saved
  // when it was tried last.
  uint64_t ahead_trials = 0;
  uint64_t ahead_passes = 0;
  double ahead_gain = 0;
  uint64_t cache_bytes = 0;  // memory now
  double wait_s = 0;         // compute waited for them
};

// Counters of the weight stream since the engine was opened.
struct StreamCounters {
  uint64_t passes = 0;
  uint64_t tiles_streamed = 0;
  uint64_t tiles_pinned = 0;
  uint64_t misses = 0;
  uint64_t ring_wraps = 0;
  uint64_t bytes_read = 0;  // weights, alignment slack included
  double io_wait_s = 0;     // compute waited for the disk
  double compute_s = 0;     // inside kernels
  // Passes in which reads were held back for the sake of computing, and how
  // often that was tried (Config::bandwidth_controller).
  uint64_t paced_passes = 0;
  uint64_t pace_trials = 0;
  // Requests to the disk begun by naming files or memory that the kernel knew.
  uint64_t registered_reads = 0;
  // The KV cache of fast, of all sessions.
  uint64_t kv_ram_bytes = 0;      // now
  uint64_t kv_disk_bytes = 0;     // now
  uint64_t kv_bytes_written = 0;  // to disk
  uint64_t kv_bytes_read = 0;     // from disk; not part of bytes_read
  // Blocks of earlier requests (Config::kv_reuse_bytes): kept now, in memory or
  // on disk, and how many tokens began with them instead of being computed.
  uint64_t kv_reuse_bytes = 0;
  uint64_t kv_reused_tokens = 0;
  ExpertCounters experts;  // their reads are part of bytes_read
};

// What Session::restore() found.
struct RestoredSession {
  bool found = false;
  uint64_t tokens = 0;       // the session has now
  uint64_t cached = 0;       // of them need not be computed again
  std::string note = {};     // as it was given to save()
  std::string problem = {};  // why not all was taken up; empty: it was
};

// One generation.
struct GenerationStats {
  uint64_t prompt_tokens = 0;
  uint64_t cached_tokens = 0;  // of the session before it, not computed again
  uint64_t reused_tokens = 0;  // of both, taken from earlier requests
  uint64_t generated_tokens = 0;
  double ttft_s = 0;  // from the call to the first token
  double prefill_s = 0;
  double decode_s = 0;  // from the first token to the last
  double prefill_tok_s = 0;
  double decode_tok_s = 0;
  uint64_t prefill_bytes_read = 0;
  uint64_t decode_bytes_read = 0;
  double bytes_read_per_token = 0;  // while decoding
  double kv_bytes_read_per_token = 0;
  double io_wait_s = 0;
  double compute_s = 0;
  double decode_io_wait_s = 0;  // their shares while decoding
  double decode_compute_s = 0;
  double disk_bytes_per_s = 0;  // while decoding
  // Of a mixture, while decoding: experts' bytes that a token used, and the
  // share of them that was in memory.
  double expert_bytes_per_token = 0;
  double expert_hit_rate = 0;
};

}  // namespace mlx_flash
