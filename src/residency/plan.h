// SPDX-License-Identifier: MIT
#pragma once

// Decides, before anything runs, how the budget is spent: which tiles stay in
// memory, how large the ring for the streamed ones is, how many prompt tokens
// share one pass, how long the context may grow. A pure function of what the
// model declares, what the machine offers and what the user asks; the same
// inputs give the same plan, and `plan` prints it without running anything.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "residency/expert_frequency.h"
#include "residency/expert_schedule.h"
#include "residency/schedule.h"

namespace mlx_flash {

// What the model needs besides matrices, from its own shapes.
struct ModelCosts {
  uint64_t small_tensor_bytes = 0;  // norms, biases: always resident
  uint64_t kv_bytes_per_token = 0;  // all layers
  uint64_t kv_block_tokens = 64;    // KV memory is taken in blocks of these
  // More for the newest tokens, where older ones are kept in fewer bits; and
  // for each row of a prompt's forward, which is kept so in one layer.
  uint64_t kv_tail_tokens = 0;
  uint64_t kv_tail_bytes_per_token = 0;
  uint64_t kv_chunk_bytes_per_row = 0;
  // Least memory of a KV cache that may go to disk. 0: it may not.
  uint64_t kv_floor_bytes = 0;
  // Memory of activations for a forward of T rows, want_logits for L of them:
  // fixed + T * per_row + L * per_logit_row.
  uint64_t activation_fixed_bytes = 0;
  uint64_t activation_bytes_per_row = 0;
  uint64_t activation_bytes_per_logit_row = 0;
  uint64_t context_max = 0;  // tokens the model was made for
};

struct Limits {
  uint64_t ram_bytes = 0;      // the promise: the whole process
  uint64_t runtime_bytes = 0;  // what the process holds besides the arena
  // By how much runtime_bytes may differ in another run. The minimum that is
  // named has room for it.
  uint64_t runtime_slack_bytes = 0;
  uint64_t context = 0;  // tokens asked for; 0: auto
  // Memory of the KV cache, which beyond it lies on disk. 0: all in memory.
  uint64_t kv_ram_bytes = 0;
  // Memory for blocks of earlier requests (kv/kv_prefixes.h), at most.
  uint64_t kv_reuse_bytes = 0;
  // Of runtime_bytes, a reserve that a usual run does not touch.
  uint64_t runtime_spare_bytes = 0;
  uint64_t prefill_rows = 0;       // tokens per pass asked for; 0: auto
  uint32_t ring_slots = 0;         // a ring there is already; 0: auto
  double disk_bytes_per_s = 0;     // 0: unknown, no prediction
  double compute_bytes_per_s = 0;  // weights per second kernels get through
  uint64_t page_bytes = 4096;      // of memory: what the arena rounds up to
  // What is known of this model's experts; null: what is usual is expected.
  const ExpertFrequency* learnt = nullptr;
};

// Rows of a forward whose activations are always set aside: one token's.
inline constexpr uint64_t kDecodeRows = 1;

struct Plan {
  uint64_t ram_bytes = 0;
  uint64_t ram_min_bytes = 0;  // smallest budget that works with these limits
  uint64_t weights_bytes = 0;  // of all matrices
  uint64_t pass_bytes = 0;     // M
  uint64_t pinned_bytes = 0;   // R: wanted bytes of pinned tiles of the pass
  uint64_t pinned_slot_bytes = 0;  // their memory, slack included
  // Experts (expert_share.h): the share of their cache, what all of them would
  // take, A, and what of A is expected in memory.
  uint64_t expert_bytes = 0;
  uint64_t expert_bytes_all = 0;
  uint64_t expert_table_bytes = 0;  // the cache's own
  uint64_t expert_token_bytes = 0;
  double expert_hit_rate = 0;
  uint64_t streamed_bytes = 0;  // M - R
  uint64_t ring_bytes = 0;
  uint32_t ring_slots = 0;
  uint32_t queue_depth = 0;  // reads under way (choose_queue_depth)
  uint64_t slot_bytes = 0;
  uint64_t kv_bytes = 0;           // set aside now
  uint64_t kv_bytes_max = 0;       // at the full context; pins yield to it
  uint64_t kv_disk_bytes_max = 0;  // on disk, at the full context
  uint64_t kv_reuse_bytes = 0;     // of earlier requests; pins yield to it
  uint64_t activation_bytes = 0;   // of kDecodeRows
  // More for prefill_rows and logit_rows. Pins yield to it while they run.
  uint64_t prefill_activation_bytes = 0;
  uint64_t small_tensor_bytes = 0;
  uint64_t page_table_bytes = 0;  // the system's, for ring, pins and KV
  uint64_t runtime_bytes = 0;
  uint64_t predicted_peak_bytes = 0;
  double predicted_decode_tok_s = 0;  // 0: unknown
  // With the context full: KV has taken its memory from pins, and what of it is
  // on disk is read for each token.
  double predicted_full_tok_s = 0;
  double disk_bytes_per_s = 0;
  uint64_t context = 0;       // tokens a session may hold
  uint32_t prefill_rows = 0;  // rows of one forward, at most
  uint32_t logit_rows = 0;    // of which want logits, at most
  std::vector<bool> pinned;   // by TileId
};

// Fails with kInvalidInput and the smallest budget that works if `limits` is
// too small.
// `experts` may be null: there are none.
Result<Plan> make_plan(const Schedule& schedule,
                       const ModelCosts& costs,
                       const Limits& limits,
                       const ExpertSchedule* experts = nullptr);

// A good size of tiles: 1 to 4 MiB for usual budgets, down to 64 KiB for tiny
// ones. Large enough for the disk, small enough that the ring is a small share
// of the budget and pins are finely grained.
uint64_t choose_tile_bytes(uint64_t ram_bytes, uint64_t weights_bytes);
inline constexpr uint64_t kTileBytesMin = uint64_t{64} << 10;
inline constexpr uint64_t kTileBytesMax = uint64_t{4} << 20;

// Reads under way at first: eight, which is enough for tiles of 256 KiB and
// more, and up to sixteen where tiles are smaller (bench/RESULTS.md, io). A
// queue that can tune it goes on from there (io/depth_tuner.h).
uint32_t choose_queue_depth(uint64_t tile_bytes);

struct ScheduleAndPlan {
  Schedule schedule;
  std::optional<ExpertSchedule> experts;
  Plan plan;
};

// Cuts the matrices and plans. With `tile_bytes` 0 it starts at
// choose_tile_bytes() and takes smaller tiles until the plan fits, so that the
// minimum it names is the smallest for any tile size. Pieces of experts are
// twice as large as tiles. `layers` outlive the result.
Result<ScheduleAndPlan> plan_model(const std::vector<ScheduledMatrix>& matrices,
                                   uint64_t alignment,
                                   uint64_t tile_bytes,
                                   const ModelCosts& costs,
                                   const Limits& limits,
                                   std::span<const ExpertLayer> layers = {});

// All tiles in the order in which they deserve to be kept: every beginning of
// it is spread evenly over the pass, so that reading and computing stay in
// step with a small ring, and a smaller budget keeps a subset of what a larger
// one does. Tiles that are not of every pass come last.
std::vector<TileId> pin_order(const Schedule& schedule);

// The tiles to keep in at most `bytes` of memory, each rounded up to pages:
// those of pin_order() that fit.
std::vector<bool> choose_pins(const Schedule& schedule,
                              uint64_t bytes,
                              uint64_t page_bytes = 4096);

// Memory of one tile, slack and rounding to pages included.
uint64_t tile_memory_bytes(const Tile& tile, uint64_t page_bytes);

// What the system needs to map `bytes` (8 bytes a page, and the upper levels).
uint64_t page_table_bytes(uint64_t bytes, uint64_t page_bytes);

}  // namespace mlx_flash
