// SPDX-License-Identifier: MIT
#pragma once

// The expert matrices of a model for Python, behind the engine's own cache
// (residency/expert_cache.h): one budget for all, what is used most stays.
//
// A table is one matrix of all experts of a layer, as one operation of mlx-lm
// uses it; a use of it is a round of the cache. Tables of one group (gate, up,
// down) are asked for the same experts one after the other, so what the next
// needs is known while one computes.
//
// Thread-compatible.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "residency/arena.h"
#include "residency/cached_experts.h"
#include "residency/expert_schedule.h"

namespace mlx_flash::python {

using ExpertTableId = uint32_t;

class ExpertTables {
 public:
  // `group`: of tables that are used together, by name.
  ExpertTableId add(ExpertLayer layer, const std::string& group);
  std::span<const ExpertLayer> layers() const { return layers_; }
  const ExpertLayer& layer(ExpertTableId id) const { return layers_[id]; }
  uint64_t bytes() const;

  // Nothing is added any more. All arguments outlive the tables, or close().
  Status open(ExpertSchedule schedule,
              uint64_t budget_bytes,
              Arena& arena,
              ReadQueue& queue,
              std::span<const File> files,
              ExpertPolicy policy,
              bool read_ahead);
  void close();
  const ExpertSchedule* schedule() const {
    return schedule_ ? &*schedule_ : nullptr;
  }
  CachedExperts* stream() { return stream_.get(); }

  // A round: calls visit(piece, uses) for each piece of each expert named in
  // `ids`, in the order in which they come; `uses` are the indices into `ids`
  // that name it. Ends with the first error, visit's too. Fails for an expert
  // that the table does not have.
  using Visit = std::function<Status(const ExpertStream::Piece& piece,
                                     std::span<const uint32_t> uses)>;
  Status round(ExpertTableId id,
               std::span<const uint32_t> ids,
               const Visit& visit);

 private:
  void group_uses(std::span<const uint32_t> ids);
  void expect_next(ExpertTableId id);
  Status pieces(const Visit& visit);

  static constexpr uint32_t kNone = UINT32_MAX;

  std::vector<ExpertLayer> layers_;
  std::vector<std::string> groups_;  // by table
  std::vector<uint32_t> next_;       // by table: which came after it, or kNone
  uint32_t last_ = kNone;            // table of the round before
  std::optional<ExpertSchedule> schedule_;
  std::unique_ptr<CachedExperts> stream_;

  // Of one round: experts, ascending, how often each is named, and where.
  std::vector<uint32_t> experts_;
  std::vector<uint32_t> counts_;
  std::vector<uint32_t> offsets_;  // by index into experts_, into uses_
  std::vector<uint32_t> uses_;
};

}  // namespace mlx_flash::python
