// SPDX-License-Identifier: MIT
#include "residency/plan.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "residency/expert_share.h"

namespace mlx_flash {
namespace {

constexpr uint32_t kRingSlotsMin = 2;
// The disk is at full speed from 8 on (bench/RESULTS.md); one is held, and one
// lets reading get ahead where pins are dense.
constexpr uint32_t kRingSlotsMax = 10;
constexpr uint64_t kContextMin = 256;  // tokens, when the user did not say
constexpr uint64_t kPrefillRowsMax = 2048;
constexpr uint64_t kLogitRowsMax = 16;

// Shapes and flags come from outside: sums stop at the largest number, which
// no budget reaches.
uint64_t add(uint64_t a, uint64_t b) {
  uint64_t sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

uint64_t mul(uint64_t a, uint64_t b) {
  uint64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? UINT64_MAX : product;
}

uint64_t round_up(uint64_t n, uint64_t unit) {
  const uint64_t over = n % unit;
  return over == 0 ? n : add(n, unit - over);
}

// The quantities that are chosen, and what they cost together.
struct Draft {
  uint64_t rows = 1;
  uint64_t logit_rows = 1;
  uint32_t slots = kRingSlotsMin;
  uint64_t kv_tokens = 0;
  uint64_t reuse_bytes = 0;
  uint64_t pin_bytes = 0;
  uint64_t expert_bytes = 0;
};

struct Costs {
  const Schedule& schedule;
  const ModelCosts& model;
  const Limits& limits;
  const ExpertSchedule* experts = nullptr;

  uint64_t slot() const {
    return round_up(schedule.slot_bytes_max(), limits.page_bytes);
  }
  uint64_t activation(const Draft& d) const {
    return add(model.activation_fixed_bytes,
               add(mul(d.rows,
                       add(model.activation_bytes_per_row,
                           model.kv_chunk_bytes_per_row)),
                   mul(d.logit_rows, model.activation_bytes_per_logit_row)));
  }
  // In memory.
  uint64_t kv(uint64_t tokens) const {
    const uint64_t all = kv_all(tokens);
    if (limits.kv_ram_bytes == 0 || model.kv_floor_bytes == 0) return all;
    const uint64_t most = std::max(limits.kv_ram_bytes, model.kv_floor_bytes);
    return std::min(all, round_up(most, limits.page_bytes));
  }
  uint64_t kv_all(uint64_t tokens) const {
    const uint64_t block = std::max<uint64_t>(1, model.kv_block_tokens);
    const uint64_t whole = round_up(tokens, block);
    return round_up(add(mul(whole, model.kv_bytes_per_token),
                        mul(std::min(whole, model.kv_tail_tokens),
                            model.kv_tail_bytes_per_token)),
                    limits.page_bytes);
  }
  uint64_t tables() const {
    return experts != nullptr ? expert_table_bytes(*experts) : 0;
  }
  uint64_t arena(const Draft& d) const {
    return add(mul(d.slots, slot()),
               add(add(kv(d.kv_tokens), d.reuse_bytes),
                   add(d.pin_bytes, d.expert_bytes)));
  }
  uint64_t total(const Draft& d) const {
    const uint64_t fixed =
        add(add(limits.runtime_bytes, tables()), model.small_tensor_bytes);
    const uint64_t arena_bytes = arena(d);
    return add(
        add(fixed, activation(d)),
        add(arena_bytes, page_table_bytes(arena_bytes, limits.page_bytes)));
  }
  // What is left of the budget beside the draft.
  uint64_t left(const Draft& d) const {
    const uint64_t used = total(d);
    return limits.ram_bytes > used ? limits.ram_bytes - used : 0;
  }
  bool fits(const Draft& d) const { return total(d) <= limits.ram_bytes; }
  // The smallest budget to name for the draft. One that works is one itself.
  uint64_t minimum(const Draft& d) const {
    const uint64_t safe = add(total(d), limits.runtime_slack_bytes);
    return fits(d) ? std::min(safe, limits.ram_bytes) : safe;
  }
};

uint64_t context_max(const Costs& costs) {
  return costs.model.context_max == 0 ? UINT32_MAX : costs.model.context_max;
}

// What works if anything does: one tile held, one read, one row.
Draft smallest(const Costs& costs) {
  Draft d;
  d.rows = std::max<uint64_t>(1, costs.limits.prefill_rows);
  if (costs.limits.ring_slots > 0) d.slots = costs.limits.ring_slots;
  d.kv_tokens = costs.limits.context > 0
                    ? costs.limits.context
                    : std::min(kContextMin, context_max(costs));
  d.reuse_bytes = costs.limits.kv_reuse_bytes;
  if (costs.experts != nullptr) {
    d.expert_bytes = expert_memory_min(*costs.experts, costs.limits.page_bytes);
  }
  return d;
}

// The largest context that fits beside the rest, in whole blocks.
uint64_t largest_context(const Costs& costs, Draft d) {
  const uint64_t block = std::max<uint64_t>(1, costs.model.kv_block_tokens);
  const uint64_t most = context_max(costs);
  uint64_t low = d.kv_tokens;
  uint64_t high = most;
  while (low < high) {  // low fits
    const uint64_t middle = low + (high - low + 1) / 2;
    d.kv_tokens = middle;
    if (costs.fits(d)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low == most ? most
                     : std::max(low / block * block, smallest(costs).kv_tokens);
}

// KV set aside at the start: a block. Pins lend more as the context grows, and
// what is not needed yet would be read for every token instead. A cache that
// goes to disk has its floor from the start.
uint64_t start_tokens(const Costs& costs, uint64_t context) {
  const ModelCosts& model = costs.model;
  uint64_t tokens = std::max<uint64_t>(1, model.kv_block_tokens);
  if (costs.kv(context) < costs.kv_all(context)) {
    tokens = std::max(
        tokens,
        model.kv_floor_bytes / std::max<uint64_t>(1, model.kv_bytes_per_token) +
            1);
  }
  return std::min(context, tokens);
}

// Doubles `field` while its extra cost is at most left / share.
template <typename T>
void grow(
    const Costs& costs, Draft& d, T Draft::*field, T most, uint64_t share) {
  const Draft before = d;
  const uint64_t allowance = costs.left(d) / share;
  for (T value = d.*field; value < most;) {
    value = std::min<T>(most, static_cast<T>(value * 2));
    Draft next = before;
    next.*field = value;
    if (!costs.fits(next) ||
        costs.total(next) - costs.total(before) > allowance)
      break;
    d = next;
  }
}

void choose_sizes(const Costs& costs, Draft& d) {
  if (costs.limits.prefill_rows == 0) {
    grow(costs, d, &Draft::rows, kPrefillRowsMax, 4);
  }
  grow(costs, d, &Draft::logit_rows, std::min(kLogitRowsMax, d.rows), 16);
  if (costs.limits.ring_slots > 0) return;
  // With all weights in memory a ring would stand idle.
  Draft all = d;
  for (const Tile& tile : costs.schedule.tiles()) {
    all.pin_bytes =
        add(all.pin_bytes, tile_memory_bytes(tile, costs.limits.page_bytes));
  }
  if (costs.experts != nullptr) {
    all.expert_bytes =
        expert_memory_all(*costs.experts, costs.limits.page_bytes);
  }
  if (costs.limits.context == 0) all.kv_tokens = context_max(costs);
  if (costs.fits(all)) return;
  const auto tiles = static_cast<uint32_t>(
      std::min<size_t>(costs.schedule.tiles().size(), kRingSlotsMax));
  grow(costs, d, &Draft::slots, std::max(tiles, kRingSlotsMin), 4);
}

// The hit rate with `bytes` for experts.
double hit_rate(const Costs& costs, uint64_t bytes) {
  const uint64_t all =
      expert_memory_all(*costs.experts, costs.limits.page_bytes);
  if (bytes >= all) return 1;
  const double share = static_cast<double>(bytes) / static_cast<double>(all);
  if (costs.limits.learnt == nullptr) {
    return expected_hit_rate(*costs.experts, share);
  }
  return learnt_hit_rate(*costs.experts, *costs.limits.learnt, share);
}

// `read`: bytes from the disk for a token.
double decode_rate(const Plan& plan, const Limits& limits, double read) {
  double seconds = 0;
  if (read > 0) {
    if (limits.disk_bytes_per_s <= 0) return 0;
    seconds = read / limits.disk_bytes_per_s;
  }
  if (limits.compute_bytes_per_s > 0) {
    // Reading and computing overlap.
    seconds = std::max(
        seconds,
        static_cast<double>(plan.pass_bytes + plan.expert_token_bytes) /
            limits.compute_bytes_per_s);
  }
  return seconds > 0 ? 1 / seconds : 0;
}

void predict_speed(const Costs& costs, Plan& plan) {
  const auto active = static_cast<double>(plan.expert_token_bytes);
  // With the context full KV has taken its memory from experts first, and
  // so has what is kept for later requests.
  uint64_t taken = plan.kv_bytes_max - plan.kv_bytes + plan.kv_reuse_bytes;
  double full_misses = 0;
  if (costs.experts != nullptr) {
    const uint64_t least =
        expert_memory_min(*costs.experts, costs.limits.page_bytes);
    const uint64_t yields =
        plan.expert_bytes > least ? plan.expert_bytes - least : 0;
    const uint64_t from_experts = std::min(taken, yields);
    taken -= from_experts;
    plan.expert_hit_rate = hit_rate(costs, plan.expert_bytes);
    full_misses =
        (1 - hit_rate(costs, plan.expert_bytes - from_experts)) * active;
  }
  const auto streamed = static_cast<double>(plan.streamed_bytes);
  const double misses = (1 - plan.expert_hit_rate) * active;
  const uint64_t from_pins = std::min(plan.pinned_bytes, taken);
  plan.predicted_decode_tok_s =
      decode_rate(plan, costs.limits, streamed + misses);
  plan.predicted_full_tok_s = decode_rate(
      plan,
      costs.limits,
      streamed + full_misses +
          static_cast<double>(add(from_pins, plan.kv_disk_bytes_max)));
}

std::string megabytes(uint64_t bytes) {
  return fmt::format("{:.1f}MB",
                     std::ceil(static_cast<double>(bytes) / 1e5) / 10);
}

Status too_small(const Costs& costs, uint64_t ram_min) {
  const Draft d = smallest(costs);
  return invalid_input(fmt::format(
      "a budget of {} is too small: the smallest that works is {} ({} for the "
      "program, {} for norms and biases, {} for activations, {} for the tiles "
      "in use, {}{} for a context of {} tokens)",
      megabytes(costs.limits.ram_bytes),
      megabytes(ram_min),
      megabytes(costs.limits.runtime_bytes),
      megabytes(costs.model.small_tensor_bytes),
      megabytes(costs.activation(d)),
      megabytes(mul(d.slots, costs.slot())),
      d.expert_bytes > 0
          ? megabytes(d.expert_bytes + costs.tables()) + " for experts, "
          : "",
      megabytes(costs.kv(d.kv_tokens)),
      d.kv_tokens));
}

// What a run of usual length will have taken: half of the KV that is set aside
// is not written yet, nor is the reserve.
uint64_t predicted_peak(const Costs& costs,
                        const Draft& decode,
                        const Plan& p) {
  const uint64_t most =
      std::min(costs.limits.ram_bytes,
               add(costs.total(decode), p.prefill_activation_bytes));
  const uint64_t spare = costs.limits.runtime_spare_bytes + p.kv_bytes / 2;
  return most > spare ? most - spare : most;
}

void fill_pins(const Costs& costs, const Draft& d, Plan& plan) {
  const uint64_t page = costs.limits.page_bytes;
  const uint64_t left = costs.left(d);
  // Their page tables come out of the same rest.
  const uint64_t tables = page_table_bytes(left, page);
  const uint64_t room = left > tables ? left - tables : 0;
  WeightShare share =
      share_weights(costs.schedule, costs.experts, room + d.expert_bytes, page);
  plan.pinned = std::move(share.pinned);
  plan.pinned_slot_bytes = share.pinned_bytes;
  plan.expert_bytes = share.expert_bytes;
  for (TileId id = 0; id < plan.pinned.size(); ++id) {
    const Tile& tile = costs.schedule.tiles()[id];
    if (!plan.pinned[id]) continue;
    if (costs.schedule.matrices()[tile.matrix].every_pass) {
      plan.pinned_bytes += tile.bytes;
    }
  }
}

}  // namespace

uint64_t tile_memory_bytes(const Tile& tile, uint64_t page_bytes) {
  return round_up(tile.slot_bytes, page_bytes);
}

uint64_t page_table_bytes(uint64_t bytes, uint64_t page_bytes) {
  const uint64_t leaves = mul(bytes / page_bytes, 8);
  // Upper levels, and the tables a few regions only begin to fill.
  return round_up(add(add(leaves, leaves / 256), 12 * page_bytes), page_bytes);
}

uint32_t choose_queue_depth(uint64_t tile_bytes) {
  constexpr uint64_t kUnderWay = uint64_t{2} << 20;
  const uint64_t depth = kUnderWay / std::max<uint64_t>(tile_bytes, 1);
  return static_cast<uint32_t>(std::clamp<uint64_t>(depth, 8, 16));
}

Result<Plan> make_plan(const Schedule& schedule,
                       const ModelCosts& model,
                       const Limits& limits,
                       const ExpertSchedule* experts) {
  FLASH_CHECK(std::has_single_bit(limits.page_bytes));
  const Costs costs{schedule, model, limits, experts};
  if (limits.context > context_max(costs)) {
    return invalid_input(
        fmt::format("a context of {} tokens: the model was made for {}",
                    limits.context,
                    model.context_max));
  }
  Draft d = smallest(costs);
  Plan plan;
  plan.ram_min_bytes = costs.minimum(d);
  if (!costs.fits(d)) return too_small(costs, plan.ram_min_bytes);

  choose_sizes(costs, d);
  plan.context =
      limits.context > 0 ? limits.context : largest_context(costs, d);
  plan.kv_bytes_max = costs.kv(plan.context);
  plan.kv_disk_bytes_max = costs.kv_all(plan.context) - plan.kv_bytes_max;
  // Taken from pins as it is needed, as is the context's.
  plan.kv_reuse_bytes = std::exchange(d.reuse_bytes, 0);
  d.kv_tokens = start_tokens(costs, plan.context);
  plan.kv_bytes = costs.kv(d.kv_tokens);

  plan.ram_bytes = limits.ram_bytes;
  for (const ScheduledMatrix& matrix : schedule.matrices()) {
    plan.weights_bytes += matrix.bytes();
  }
  plan.pass_bytes = schedule.pass_bytes();
  if (experts != nullptr) {
    plan.weights_bytes = add(plan.weights_bytes, experts->total_bytes());
    plan.expert_bytes_all = expert_memory_all(*experts, limits.page_bytes);
    plan.expert_table_bytes = costs.tables();
    plan.expert_token_bytes = experts->token_bytes();
  }
  plan.slot_bytes = costs.slot();
  plan.ring_slots = d.slots;
  plan.ring_bytes = d.slots * plan.slot_bytes;
  plan.queue_depth = choose_queue_depth(schedule.tile_bytes_max());
  Draft decode = d;
  decode.rows = decode.logit_rows = kDecodeRows;
  plan.activation_bytes = costs.activation(decode);
  plan.prefill_activation_bytes = costs.activation(d) - plan.activation_bytes;
  plan.small_tensor_bytes = model.small_tensor_bytes;
  plan.runtime_bytes = limits.runtime_bytes;
  plan.prefill_rows =
      static_cast<uint32_t>(std::min<uint64_t>(d.rows, UINT32_MAX));
  plan.logit_rows = static_cast<uint32_t>(d.logit_rows);
  fill_pins(costs, decode, plan);
  plan.streamed_bytes = plan.pass_bytes - plan.pinned_bytes;
  decode.pin_bytes = plan.pinned_slot_bytes;
  decode.expert_bytes = plan.expert_bytes;
  plan.page_table_bytes =
      page_table_bytes(costs.arena(decode), limits.page_bytes);
  FLASH_CHECK(costs.fits(decode));
  plan.predicted_peak_bytes = predicted_peak(costs, decode, plan);
  plan.disk_bytes_per_s = limits.disk_bytes_per_s;
  predict_speed(costs, plan);
  return plan;
}

uint64_t choose_tile_bytes(uint64_t ram_bytes, uint64_t weights_bytes) {
  const uint64_t wish = std::min(ram_bytes / 96, weights_bytes / 48);
  return std::clamp(std::bit_floor(std::max<uint64_t>(wish, 1)),
                    kTileBytesMin,
                    kTileBytesMax);
}

Result<ScheduleAndPlan> plan_model(const std::vector<ScheduledMatrix>& matrices,
                                   uint64_t alignment,
                                   uint64_t tile_bytes,
                                   const ModelCosts& costs,
                                   const Limits& limits,
                                   std::span<const ExpertLayer> layers) {
  uint64_t weights = 0;
  for (const ScheduledMatrix& matrix : matrices) {
    weights = add(weights, matrix.bytes());
  }
  const auto cut_experts = [&](uint64_t size) {
    std::optional<ExpertSchedule> experts;
    if (!layers.empty()) experts.emplace(layers, 2 * size, alignment);
    return experts;
  };
  FLASH_RETURN_IF_ERROR(ExpertSchedule::check(layers));
  const uint64_t first = tile_bytes > 0
                             ? tile_bytes
                             : choose_tile_bytes(limits.ram_bytes, weights);
  const uint64_t last = tile_bytes > 0 ? tile_bytes : kTileBytesMin;
  for (uint64_t size = first;; size /= 2) {
    Schedule schedule(matrices, size, alignment);
    std::optional<ExpertSchedule> experts = cut_experts(size);
    Result<Plan> plan =
        make_plan(schedule, costs, limits, experts ? &*experts : nullptr);
    if (!plan.ok()) {
      if (size <= last) return plan.status();
      continue;
    }
    if (size > last) {
      const Schedule small(matrices, last, alignment);
      const std::optional<ExpertSchedule> cut = cut_experts(last);
      const Costs small_costs{small, costs, limits, cut ? &*cut : nullptr};
      plan->ram_min_bytes = std::min(
          plan->ram_min_bytes, small_costs.minimum(smallest(small_costs)));
    }
    return ScheduleAndPlan{
        std::move(schedule), std::move(experts), std::move(plan).value()};
  }
}

std::vector<TileId> pin_order(const Schedule& schedule) {
  // Position i gets the key frac(i * golden ratio): for every threshold the
  // positions with smaller keys are spread evenly (three-distance theorem).
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  const std::vector<TileId>& order = schedule.order();
  std::vector<uint32_t> positions(order.size());
  std::iota(positions.begin(), positions.end(), 0u);
  std::stable_sort(
      positions.begin(), positions.end(), [](uint32_t a, uint32_t b) {
        return a * kGolden < b * kGolden;
      });
  std::vector<TileId> result;
  result.reserve(schedule.tiles().size());
  for (const uint32_t position : positions) result.push_back(order[position]);
  for (TileId id = 0; id < schedule.tiles().size(); ++id) {
    const MatrixId matrix = schedule.tiles()[id].matrix;
    if (!schedule.matrices()[matrix].every_pass) result.push_back(id);
  }
  return result;
}

std::vector<bool> choose_pins(const Schedule& schedule,
                              uint64_t bytes,
                              uint64_t page_bytes) {
  std::vector<bool> pinned(schedule.tiles().size(), false);
  for (const TileId id : pin_order(schedule)) {
    const uint64_t need = tile_memory_bytes(schedule.tiles()[id], page_bytes);
    if (need > bytes) continue;
    pinned[id] = true;
    bytes -= need;
  }
  return pinned;
}

}  // namespace mlx_flash
