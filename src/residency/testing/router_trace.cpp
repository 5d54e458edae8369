// SPDX-License-Identifier: MIT
#include "residency/testing/router_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/read_file.h"
#include "residency/expert_cache.h"

namespace mlx_flash::testing {
namespace {

constexpr uint64_t kSlabBytes = 2 << 20;
constexpr size_t kTraceBytesMax = size_t{1} << 30;

// One budget of whole slabs; `Policy` ranks residents and the newcomer: the
// least goes, and a newcomer that is less than all is not kept.
template <typename Rank>
double ranked_hit_rate(const RouterTrace& trace,
                       uint32_t capacity,
                       uint32_t warm,
                       const Rank& rank,
                       bool admit_always) {
  std::vector<bool> resident(trace.slabs());
  std::vector<uint32_t> members;
  uint64_t hits = 0;
  uint64_t uses = 0;
  for (uint32_t t = 0; t < trace.tokens(); ++t) {
    for (uint32_t l = 0; l < trace.layers(); ++l) {
      const auto chosen = trace.at(t, l);
      for (const uint32_t e : chosen) {
        if (t < warm) continue;
        ++uses;
        if (resident[l * trace.experts() + e]) ++hits;
      }
      rank.use(t, l);
      for (const uint32_t e : chosen) {
        const uint32_t slab = l * trace.experts() + e;
        if (resident[slab]) continue;
        if (members.size() < capacity) {
          members.push_back(slab);
          resident[slab] = true;
          continue;
        }
        const auto victim =
            std::min_element(members.begin(), members.end(), rank.less(l));
        if (!admit_always && rank.less(l)(slab, *victim)) continue;
        resident[*victim] = false;
        resident[slab] = true;
        *victim = slab;
      }
    }
  }
  return uses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(uses);
}

class LruRank {
 public:
  explicit LruRank(const RouterTrace& trace)
      : trace_(trace), last_(trace.slabs()) {}
  void use(uint32_t token, uint32_t layer) const {
    for (const uint32_t e : trace_.at(token, layer)) {
      last_[layer * trace_.experts() + e] = ++clock_;
    }
  }
  auto less(uint32_t) const {
    return [this](uint32_t a, uint32_t b) { return last_[a] < last_[b]; };
  }

 private:
  const RouterTrace& trace_;
  mutable std::vector<uint64_t> last_;
  mutable uint64_t clock_ = 0;
};

class BeladyRank {
 public:
  explicit BeladyRank(const RouterTrace& trace)
      : trace_(trace), uses_(trace.slabs()), next_(trace.slabs()) {
    for (uint32_t t = 0; t < trace.tokens(); ++t) {
      for (uint32_t l = 0; l < trace.layers(); ++l) {
        for (const uint32_t e : trace.at(t, l)) {
          uses_[l * trace.experts() + e].push_back(t * trace.layers() + l);
        }
      }
    }
  }
  void use(uint32_t token, uint32_t layer) const {
    for (const uint32_t e : trace_.at(token, layer)) {
      ++next_[layer * trace_.experts() + e];
    }
  }
  auto less(uint32_t) const {
    return [this](uint32_t a, uint32_t b) { return when(a) > when(b); };
  }

 private:
  uint32_t when(uint32_t slab) const {
    return next_[slab] < uses_[slab].size() ? uses_[slab][next_[slab]]
                                            : UINT32_MAX;
  }
  const RouterTrace& trace_;
  std::vector<std::vector<uint32_t>> uses_;  // by slab, ascending
  mutable std::vector<size_t> next_;         // by slab: into uses_
};

class LfuRank {
 public:
  LfuRank(const RouterTrace& trace, double half_life)
      : trace_(trace),
        growth_(std::exp2(1 / half_life)),
        counts_(trace.slabs()) {}
  // Instead of decaying all counts a later use weighs more.
  void use(uint32_t token, uint32_t layer) const {
    if (layer == 0 && token > 0) weight_ *= growth_;
    if (weight_ > 1e100) {
      for (double& count : counts_) count /= weight_;
      weight_ = 1;
    }
    for (const uint32_t e : trace_.at(token, layer)) {
      counts_[layer * trace_.experts() + e] += weight_;
    }
  }
  auto less(uint32_t) const {
    return [this](uint32_t a, uint32_t b) { return counts_[a] < counts_[b]; };
  }

 private:
  const RouterTrace& trace_;
  double growth_;
  mutable double weight_ = 1;
  mutable std::vector<double> counts_;
};

std::vector<ExpertLayer> layers_of(const RouterTrace& trace) {
  std::vector<ExpertLayer> layers(trace.layers());
  uint64_t at = 0;
  for (ExpertLayer& layer : layers) {
    layer.name = "trace";
    layer.experts = trace.experts();
    layer.active = trace.active();
    ExpertMatrix& matrix = layer.matrices.emplace_back();
    matrix.rows = 1;
    matrix.part_count = 1;
    for (uint32_t e = 0; e < trace.experts(); ++e) {
      matrix.parts.push_back({MatrixPart{0, at, kSlabBytes}});
      at += kSlabBytes;
    }
  }
  return layers;
}

// A round of a cache whose reads come back at once.
uint64_t round(ExpertCache& cache,
               uint32_t layer,
               std::span<const uint32_t> experts,
               std::span<const uint32_t> rows) {
  const uint64_t before = cache.stats().hits;
  cache.begin(layer, experts, rows);
  ExpertStream::Piece piece;
  Status status;
  for (;;) {
    const ExpertCache::Answer answer = cache.next(&piece, &status);
    if (answer == ExpertCache::Answer::kDone) break;
    if (answer == ExpertCache::Answer::kPiece) {
      cache.release();
      continue;
    }
    FLASH_CHECK(answer == ExpertCache::Answer::kWait);
    ExpertCache::Read* read = cache.next_read();
    if (read == nullptr) {
      cache.force();
      read = cache.next_read();
    }
    FLASH_CHECK(read != nullptr);
    // As many as may be under way at once.
    std::vector<ExpertCache::Read*> reads;
    for (; read != nullptr; read = cache.next_read()) reads.push_back(read);
    for (ExpertCache::Read* r : reads) {
      for (uint32_t i = r->count; i > 0; --i) {
        cache.on_completion(r->requests[i - 1]);
      }
    }
  }
  cache.end();
  return cache.stats().hits - before;
}

}  // namespace

Result<RouterTrace> RouterTrace::open(const std::string& path,
                                      uint32_t layers,
                                      uint32_t active,
                                      uint32_t experts) {
  FLASH_ASSIGN_OR_RETURN(const std::string bytes,
                         read_whole_file(path, kTraceBytesMax));
  const size_t token = size_t{layers} * active;
  if (token == 0 || bytes.empty() || bytes.size() % token != 0) {
    return invalid_input(
        fmt::format("{}: {} bytes are not tokens of {} layers with {} experts",
                    path,
                    bytes.size(),
                    layers,
                    active));
  }
  RouterTrace trace;
  trace.tokens_ = static_cast<uint32_t>(bytes.size() / token);
  trace.layers_ = layers;
  trace.active_ = active;
  trace.experts_ = experts;
  for (const char c : bytes) {
    const auto expert = static_cast<unsigned char>(c);
    if (expert >= experts) {
      return invalid_input(
          fmt::format("{}: expert {} of {}", path, expert, experts));
    }
    trace.chosen_.push_back(expert);
  }
  return trace;
}

double lru_hit_rate(const RouterTrace& trace,
                    uint32_t capacity,
                    uint32_t warm) {
  return ranked_hit_rate(trace, capacity, warm, LruRank(trace), true);
}

double belady_hit_rate(const RouterTrace& trace,
                       uint32_t capacity,
                       uint32_t warm) {
  return ranked_hit_rate(trace, capacity, warm, BeladyRank(trace), false);
}

double lfu_hit_rate(const RouterTrace& trace,
                    uint32_t capacity,
                    uint32_t warm,
                    double half_life) {
  return ranked_hit_rate(
      trace, capacity, warm, LfuRank(trace, half_life), false);
}

double cache_hit_rate(const RouterTrace& trace,
                      uint32_t capacity,
                      uint32_t warm,
                      ExpertPolicy policy) {
  const std::vector<ExpertLayer> layers = layers_of(trace);
  const ExpertSchedule schedule(layers, kSlabBytes, 4096);
  std::vector<File> files;
  files.push_back(File::described("trace", trace.slabs() * kSlabBytes, 4096));
  const uint64_t budget = (uint64_t{capacity} + 1) * kSlabBytes;
  const uint64_t addresses =
      ExpertSlots::address_bytes(schedule, Arena::system_page_bytes());
  auto arena = Arena::create(addresses, budget);
  FLASH_CHECK(arena.ok());
  auto slots = ExpertSlots::create(schedule, **arena, budget);
  FLASH_CHECK(slots.ok());
  ExpertCache cache(schedule, files, std::move(slots).value(), policy);
  const std::vector<uint32_t> rows(trace.active(), 1);
  uint64_t hits = 0;
  for (uint32_t t = 0; t < trace.tokens(); ++t) {
    for (uint32_t l = 0; l < trace.layers(); ++l) {
      const uint64_t n = round(cache, l, trace.at(t, l), rows);
      if (t >= warm) hits += n;
    }
  }
  cache.clear();
  const uint64_t uses =
      uint64_t{trace.tokens() - std::min(warm, trace.tokens())} *
      trace.layers() * trace.active();
  return uses == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(uses);
}

ExpertFrequency::State learn_from(const RouterTrace& trace, uint32_t tokens) {
  const std::vector<ExpertFrequency::Layer> shapes(
      trace.layers(), {trace.experts(), trace.active()});
  ExpertFrequency frequency(shapes);
  const std::vector<uint32_t> rows(trace.active(), 1);
  for (uint32_t t = 0; t < std::min(tokens, trace.tokens()); ++t) {
    for (uint32_t l = 0; l < trace.layers(); ++l) {
      frequency.use(l, trace.at(t, l), rows);
    }
  }
  return frequency.state();
}

}  // namespace mlx_flash::testing
