// SPDX-License-Identifier: MIT
#include "expert_tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace mlx_flash::python {

ExpertTableId ExpertTables::add(ExpertLayer layer, const std::string& group) {
  layers_.push_back(std::move(layer));
  groups_.push_back(group);
  next_.push_back(kNone);
  return static_cast<ExpertTableId>(layers_.size() - 1);
}

uint64_t ExpertTables::bytes() const {
  uint64_t bytes = 0;
  for (const ExpertLayer& layer : layers_) {
    for (const ExpertMatrix& matrix : layer.matrices) {
      for (uint32_t p = 0; p < matrix.part_count; ++p) {
        bytes += layer.experts * matrix.rows * matrix.parts[0][p].row_bytes;
      }
    }
  }
  return bytes;
}

Status ExpertTables::open(ExpertSchedule schedule,
                          uint64_t budget_bytes,
                          Arena& arena,
                          ReadQueue& queue,
                          std::span<const File> files,
                          ExpertPolicy policy,
                          bool read_ahead) {
  schedule_.emplace(std::move(schedule));
  // What is read ahead here is certain to be used: no gate.
  const auto ahead = read_ahead ? CachedExperts::LookAhead::kAlways
                                : CachedExperts::LookAhead::kNever;
  FLASH_ASSIGN_OR_RETURN(
      stream_,
      CachedExperts::create(
          *schedule_, budget_bytes, arena, queue, files, ahead, policy));
  return Status();
}

void ExpertTables::close() {
  stream_.reset();
}

void ExpertTables::group_uses(std::span<const uint32_t> ids) {
  uses_.resize(ids.size());
  std::iota(uses_.begin(), uses_.end(), 0u);
  std::stable_sort(uses_.begin(), uses_.end(), [&](uint32_t a, uint32_t b) {
    return ids[a] < ids[b];
  });
  experts_.clear();
  counts_.clear();
  offsets_.clear();
  for (uint32_t i = 0; i < uses_.size(); ++i) {
    const uint32_t expert = ids[uses_[i]];
    if (experts_.empty() || experts_.back() != expert) {
      experts_.push_back(expert);
      counts_.push_back(0);
      offsets_.push_back(i);
    }
    ++counts_.back();
  }
}

// What followed last time follows again.
void ExpertTables::expect_next(ExpertTableId id) {
  if (last_ != kNone && last_ != id && groups_[last_] == groups_[id]) {
    next_[last_] = id;
  }
  last_ = id;
  if (next_[id] != kNone) stream_->look_ahead(next_[id], experts_);
}

Status ExpertTables::round(ExpertTableId id,
                           std::span<const uint32_t> ids,
                           const Visit& visit) {
  if (ids.empty()) return Status();
  group_uses(ids);
  if (experts_.back() >= layers_[id].experts) {
    return invalid_input(fmt::format("{}: expert {} of {}",
                                     layers_[id].name,
                                     experts_.back(),
                                     layers_[id].experts));
  }
  Status status = stream_->begin(id, experts_, counts_);
  if (status.ok()) {
    expect_next(id);
    status = pieces(visit);
  }
  stream_->end();
  return status;
}

Status ExpertTables::pieces(const Visit& visit) {
  for (;;) {
    FLASH_ASSIGN_OR_RETURN(const ExpertStream::Piece* piece, stream_->next());
    if (piece == nullptr) return Status();
    const auto found =
        std::lower_bound(experts_.begin(), experts_.end(), piece->expert);
    FLASH_CHECK(found != experts_.end() && *found == piece->expert);
    const auto i = static_cast<size_t>(found - experts_.begin());
    const Status visited =
        visit(*piece, std::span(uses_).subspan(offsets_[i], counts_[i]));
    stream_->release();
    FLASH_RETURN_IF_ERROR(visited);
  }
}

}  // namespace mlx_flash::python
