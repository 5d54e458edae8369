// SPDX-License-Identifier: MIT
#include "residency/expert_share.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "residency/expert_cache.h"
#include "residency/plan.h"

namespace mlx_flash {
namespace {

// What experts are given before tiles: a layer's reads at once, where that is
// little.
constexpr uint64_t kReadAtOnceBytes = uint64_t{16} << 20;
constexpr uint64_t kReadAtOnceShare = 8;

struct CurvePoint {
  double share;
  double hit_rate;
};

// Measured with expert_replay (bench/RESULTS.md): 8 of 128 experts in 48
// layers, 4 of 32 in 6.
constexpr std::array<CurvePoint, 8> kOneOf16 = {{{0, 0},
                                                 {0.062, 0.42},
                                                 {0.086, 0.50},
                                                 {0.135, 0.61},
                                                 {0.25, 0.76},
                                                 {0.45, 0.89},
                                                 {0.70, 0.97},
                                                 {1, 1}}};
constexpr std::array<CurvePoint, 8> kOneOf8 = {{{0, 0},
                                                {0.10, 0.23},
                                                {0.15, 0.32},
                                                {0.20, 0.40},
                                                {0.25, 0.47},
                                                {0.35, 0.59},
                                                {0.50, 0.75},
                                                {1, 1}}};

double interpolate(std::span<const CurvePoint> curve, double share) {
  const auto after =
      std::find_if(curve.begin(), curve.end(), [&](const CurvePoint& point) {
        return point.share >= share;
      });
  if (after == curve.end()) return 1;
  if (after == curve.begin()) return after->hit_rate;
  const CurvePoint& before = *(after - 1);
  const double part = (share - before.share) / (after->share - before.share);
  return before.hit_rate + part * (after->hit_rate - before.hit_rate);
}

uint64_t reads_at_once(const ExpertSchedule& experts,
                       uint64_t bytes,
                       uint64_t page_bytes) {
  uint64_t layer = 0;
  for (uint32_t l = 0; l < experts.layers().size(); ++l) {
    layer = std::max(layer, experts.slab_bytes(l) * experts.layers()[l].active);
  }
  const uint64_t wish = std::min(layer, kReadAtOnceBytes);
  return std::max(expert_memory_min(experts, page_bytes),
                  std::min(wish, bytes / kReadAtOnceShare));
}

}  // namespace

uint64_t expert_memory_min(const ExpertSchedule& experts, uint64_t page_bytes) {
  uint64_t most = 0;
  for (const auto& c : experts.classes(page_bytes)) {
    most = std::max(most, c.slot_bytes);
  }
  return 2 * most;
}

uint64_t expert_memory_all(const ExpertSchedule& experts, uint64_t page_bytes) {
  uint64_t bytes = 0;
  for (const auto& c : experts.classes(page_bytes)) {
    bytes += c.pieces * c.slot_bytes;
  }
  return bytes;
}

uint64_t expert_table_bytes(const ExpertSchedule& experts) {
  return ExpertCache::table_bytes(experts);
}

WeightShare share_weights(const Schedule& schedule,
                          const ExpertSchedule* experts,
                          uint64_t bytes,
                          uint64_t page_bytes) {
  WeightShare share;
  if (experts == nullptr) {
    share.pinned = choose_pins(schedule, bytes, page_bytes);
    for (TileId id = 0; id < share.pinned.size(); ++id) {
      if (!share.pinned[id]) continue;
      share.pinned_bytes += tile_memory_bytes(schedule.tiles()[id], page_bytes);
    }
    return share;
  }
  const uint64_t all = expert_memory_all(*experts, page_bytes);
  uint64_t kept =
      std::min({bytes, all, reads_at_once(*experts, bytes, page_bytes)});
  share.pinned.assign(schedule.tiles().size(), false);
  bool row_tables = false;
  for (const TileId id : pin_order(schedule)) {
    const Tile& tile = schedule.tiles()[id];
    if (!row_tables && !schedule.matrices()[tile.matrix].every_pass) {
      row_tables = true;
      kept = std::min(all, bytes - share.pinned_bytes);
    }
    const uint64_t need = tile_memory_bytes(tile, page_bytes);
    if (need > bytes - kept - share.pinned_bytes) continue;
    share.pinned[id] = true;
    share.pinned_bytes += need;
  }
  share.expert_bytes = std::min(all, bytes - share.pinned_bytes);
  return share;
}

// Between the curves by the logarithm of active / experts. Where all are active
// any of them is as good as another.
double expected_hit_rate(const ExpertSchedule& experts, double share) {
  double active = 0;
  double all = 0;
  for (const ExpertLayer& layer : experts.layers()) {
    active += layer.active;
    all += layer.experts;
  }
  if (all == 0) return 1;
  const double halvings = std::log2(all / active);
  const double at_16 = interpolate(kOneOf16, share);
  if (halvings >= 4) return at_16;
  const double at_8 = interpolate(kOneOf8, share);
  if (halvings >= 3) return at_8 + (halvings - 3) * (at_16 - at_8);
  return share + halvings / 3 * (at_8 - share);
}

// The experts of the highest scores fill the share.
double learnt_hit_rate(const ExpertSchedule& experts,
                       const ExpertFrequency& learnt,
                       double share) {
  struct Item {
    float score;
    uint64_t bytes;
  };
  std::vector<Item> items;
  double needed = 0;
  uint64_t all = 0;
  for (uint32_t l = 0; l < experts.layers().size(); ++l) {
    const uint64_t bytes = experts.slab_bytes(l);
    for (const float score : learnt.scores(l)) {
      items.push_back({score, bytes});
      needed += static_cast<double>(score) * static_cast<double>(bytes);
      all += bytes;
    }
  }
  if (needed <= 0) return expected_hit_rate(experts, share);
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return a.score > b.score;
  });
  double room = share * static_cast<double>(all);
  double kept = 0;
  for (const Item& item : items) {
    const auto bytes = static_cast<double>(item.bytes);
    if (bytes > room) break;
    room -= bytes;
    kept += static_cast<double>(item.score) * bytes;
  }
  return kept / needed;
}

}  // namespace mlx_flash
